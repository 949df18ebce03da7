"""Tokens as bytes: what each token of a vocabulary adds to a text, and text from bytes without half characters.

Owns the vocabulary's byte table and the incremental UTF-8 decoding. Knows no chat, no stop strings, no HTTP.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable

from tokenizers import Tokenizer

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces:
    """The bytes of every token.

    A byte-level vocabulary (GPT-2's, Llama 3's, Qwen's) spells bytes as letters; a SentencePiece one writes
    a space as U+2581 and a lone byte as `<0xAB>`; for any other the tokenizer itself decodes token by token.
    """

    def __init__(self, tokenizer: Tokenizer, hidden: Iterable[int] = ()) -> None:
        decoder = json.dumps(json.loads(tokenizer.to_str()).get("decoder"))
        self._tokenizer = tokenizer
        self._byte_level = '"ByteLevel"' in decoder
        self._sentencepiece = "ByteFallback" in decoder or "Metaspace" in decoder
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token: piece.content for token, piece in added.items()}
        self._hidden = {token for token, piece in added.items() if piece.special} | set(hidden)
        self._known: dict[int, bytes] = {}

    @property
    def hidden(self) -> frozenset[int]:
        """Tokens that are not shown in an answer."""
        return frozenset(self._hidden)

    def spelled(self, token: int) -> bytes:
        """The token's bytes; those of a control token are its name."""
        if token not in self._known:
            self._known[token] = self._spell(token)
        return self._known[token]

    def shown(self, token: int) -> bytes:
        """The token's bytes in an answer: control tokens and `hidden` ones are not shown."""
        return b"" if token in self._hidden else self.spelled(token)

    def data(self, tokens: Iterable[int]) -> bytes:
        """The bytes of `tokens`, control tokens spelled."""
        return b"".join(map(self.spelled, tokens))

    def text(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`, control tokens spelled; half characters become U+FFFD."""
        return self.data(tokens).decode("utf-8", "replace")

    def _spell(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:  # ids of a padded embedding name nothing
            return b""
        if self._byte_level and all(letter in LETTER_BYTES for letter in piece):
            return bytes(LETTER_BYTES[letter] for letter in piece)
        if self._sentencepiece:
            byte = BYTE_TOKEN.fullmatch(piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()
        return str(self._tokenizer.decode([token], skip_special_tokens=False)).encode()


class TextStream:
    """Text from a stream of bytes; the beginning of a character waits for its end."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What still waited: nothing, or U+FFFD for a character that never ended."""
        return self._decoder.decode(b"", final=True)


def _letter_bytes() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


LETTER_BYTES = _letter_bytes()
