"""Tokens as bytes: the table spells what the tokenizer decodes, and no half character is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from server.pieces import Pieces, TextStream

CAIRN = Path(__file__).parents[2] / "models" / "cairn-4m" / "tokenizer.json"
TEXT = "Hello, wörld 123!\n\t“Quotes” 日本語 🙂🙃 naïve\u2028end"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CAIRN))


@pytest.fixture
def sentencepiece() -> Tokenizer:
    """A vocabulary in SentencePiece's style, with bytes to fall back on."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "\u2581": 257, "a": 258}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def test_a_byte_level_vocabulary_spells_its_text(tokenizer: Tokenizer) -> None:
    pieces, tokens = Pieces(tokenizer), tokenizer.encode(TEXT).ids
    assert pieces.text(tokens) == TEXT


def test_a_sentencepiece_vocabulary_spells_its_text(sentencepiece: Tokenizer) -> None:
    tokens = sentencepiece.encode("a a 🙂").ids
    assert Pieces(sentencepiece).text(tokens) == " a a 🙂"


def test_control_tokens_are_spelled_but_not_shown(tokenizer: Tokenizer) -> None:
    pieces = Pieces(tokenizer)
    assert (pieces.spelled(4), pieces.shown(4)) == (b"<|end|>", b"")


def test_an_id_without_a_token_is_empty(tokenizer: Tokenizer) -> None:
    assert Pieces(tokenizer).spelled(1_000_000) == b""


def test_no_half_character_is_shown(tokenizer: Tokenizer) -> None:
    pieces, stream = Pieces(tokenizer), TextStream()
    shown = [stream.push(pieces.shown(token)) for token in tokenizer.encode(TEXT).ids]
    assert len(shown) > len([part for part in shown if part]), "some token must end within a character"
    assert "".join(shown) + stream.finish() == TEXT
    assert not any("\ufffd" in part for part in shown)


def test_a_character_that_never_ends_is_told_at_the_end() -> None:
    stream = TextStream()
    assert stream.push("é".encode()[:1]) == ""
    assert stream.finish() == "\ufffd"
