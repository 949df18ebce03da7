"""From tokens to an answer's text: stop strings end it exactly, wherever tokens and characters are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engine import Finished, Timing, Token, Usage
from server.choices import Choice
from server.pieces import Pieces

CAIRN = Path(__file__).parents[2] / "models" / "cairn-4m" / "tokenizer.json"
TEXT = "Hello wörld 日本語, 🙂🙃 and no more"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CAIRN))


@pytest.fixture(scope="module")
def pieces(tokenizer: Tokenizer) -> Pieces:
    return Pieces(tokenizer)


def answer(pieces: Pieces, tokens: list[int], *stops: str) -> tuple[str, str, int]:
    """Text, reason, and how many tokens it took."""
    choice = Choice(0, pieces, stops)
    text = ""
    for token in tokens:
        delta = choice.push(Token(0, token))
        text += delta.text if delta else ""
    rest, ended = choice.finish(Finished(0, "length", Usage(1, 0, len(tokens)), Timing(0, 0, 0)))
    return text + (rest.text if rest else ""), ended.reason, len(ended.tokens)


def test_a_stop_string_may_begin_and_end_anywhere(tokenizer: Tokenizer, pieces: Pieces) -> None:
    tokens = tokenizer.encode(TEXT).ids
    for begin in range(len(TEXT)):
        for end in range(begin + 1, min(begin + 6, len(TEXT) + 1)):
            stop = TEXT[begin:end]
            text, reason, count = answer(pieces, tokens, stop)
            assert (text, reason) == (TEXT[: TEXT.index(stop)], "stop")
            shown = pieces.text(tokens[:count])
            assert stop in shown, "it stops with the token that completes the string"
            assert stop not in pieces.text(tokens[: count - 1])


def test_half_a_character_is_no_stop_string(tokenizer: Tokenizer, pieces: Pieces) -> None:
    """Its bytes may be those of another character: 本 and 未 begin alike."""
    tokens = tokenizer.encode("未来").ids
    assert answer(pieces, tokens, "本", "日") == ("未来", "length", len(tokens))


def test_a_character_that_never_ends_is_shown_as_such_and_may_stop(tokenizer: Tokenizer, pieces: Pieces) -> None:
    half, rest = tokenizer.encode("日").ids[:1], tokenizer.encode(" more").ids
    assert answer(pieces, [*half, *rest])[0] == "\ufffd more"
    assert answer(pieces, [*half, *rest], "\ufffd")[:2] == ("", "stop")


def test_the_first_complete_one_of_several_ends_the_answer(tokenizer: Tokenizer, pieces: Pieces) -> None:
    tokens = tokenizer.encode(TEXT).ids
    assert answer(pieces, tokens, "語, 🙂", "本語")[0] == "Hello wörld 日"
