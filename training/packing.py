"""Records as rows of a fixed number of text tokens, and the order in which a run sees them.

A record that fits a row is never cut, so a fact and its question stay together; a longer text is cut into rows, and its
rest shares a row with others. Knows no landmark and no model.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.records import InputError, Part, Record

Span = tuple[int, int]


@dataclass(frozen=True)
class Encoder:
    """A transformers tokenizer, and what it wants at the beginning of a text."""

    tokenizer: Any

    @property
    def opening(self) -> list[int]:
        """Tokens before every text, such as Llama's `<|begin_of_text|>`: what it puts around nothing, but an end."""
        ids = self.tokenizer.encode("")
        return [token for token in ids if token != self.tokenizer.eos_token_id]

    @property
    def padding(self) -> int:
        """A token for slots after the last text: nothing is learned there."""
        found = self.tokenizer.pad_token_id
        return int(found if found is not None else self.tokenizer.eos_token_id or 0)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of a text; `special` lets names of control tokens in it be these tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special)
        return ids

    def record(self, parts: tuple[Part, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 and loss weights float32 (tokens,); nothing foretells the first token."""
        encoded = [self.encode(part.text, special=part.special) for part in parts]
        tokens = np.array([token for ids in encoded for token in ids], dtype=np.int32)
        weights = np.repeat(np.array([p.weight for p in parts], np.float32), [len(ids) for ids in encoded])
        weights[:1] = 0.0
        return tokens, weights


class Rows:
    """Texts of one file as rows.

    Attributes:
        tokens, weights: all texts, one after the other (tokens,)
        rows: which spans of them each row holds
        width: text tokens of a row
    """

    def __init__(
        self, tokens: np.ndarray, weights: np.ndarray, rows: list[list[Span]], width: int, encoder: Encoder
    ) -> None:
        self.tokens, self.weights, self.rows, self.width = tokens, weights, rows, width
        self._opening, self._padding = encoder.opening, encoder.padding

    @classmethod
    def of(cls, records: list[Record], width: int, encoder: Encoder) -> Rows:
        """Encode and pack; raises InputError where a whole record does not fit."""
        room, spans, end = width - len(encoder.opening), [], 0
        arrays = [(np.zeros(0, np.int32), np.zeros(0, np.float32))]
        for record in records:
            tokens, weights = encoder.record(record.parts)
            if record.whole and len(tokens) > room:
                raise InputError(
                    f"a sample of {len(tokens)} tokens does not fit a row of {room}; give a longer --length"
                )
            arrays.append((tokens, weights))
            spans.append((end, end := end + len(tokens)))
        tokens, weights = (np.concatenate(x) for x in zip(*arrays, strict=True))
        return cls(tokens, weights, pack(spans, room, len(encoder.opening)), width, encoder)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int64 and weights float32 (width,) of one row."""
        tokens, weights = np.full(self.width, self._padding, np.int64), np.zeros(self.width, np.float32)
        at = 0
        for start, end in self.rows[number]:
            tokens[at : at + len(self._opening)] = self._opening
            at += len(self._opening)
            tokens[at : at + end - start] = self.tokens[start:end]
            weights[at : at + end - start] = self.weights[start:end]
            at += end - start
        return tokens, weights


@dataclass(frozen=True)
class HeldOut:
    """What is not trained on: a share of each file's rows, and texts by title."""

    share: float
    titles: frozenset[str]


@dataclass(frozen=True)
class Split:
    """A file's rows: which are trained on, and which rows (of it, or of its held-out texts) are not."""

    rows: Rows
    trained: list[int]
    held: list[tuple[Rows, int]]

    @property
    def tokens(self) -> int:
        return len(self.rows.tokens)

    @classmethod
    def of(cls, records: list[Record], width: int, encoder: Encoder, apart: HeldOut, seed: int) -> Split:
        rows = Rows.of([record for record in records if record.title not in apart.titles], width, encoder)
        others = Rows.of([record for record in records if record.title in apart.titles], width, encoder)
        numbers = list(range(len(rows)))
        random.Random(seed).shuffle(numbers)
        wanted = max(1, round(apart.share * len(rows))) if apart.share else 0
        count = max(0, min(wanted, len(rows) - 1))  # something must be left
        held = [(rows, number) for number in numbers[:count]] + [(others, number) for number in range(len(others))]
        return cls(rows, sorted(numbers[count:]), held)


def pack(spans: list[Span], room: int, opening: int) -> list[list[Span]]:
    """Cut spans longer than `room` into rows; put the rests together, the longest first, each where it fits best."""
    rows: list[list[Span]] = []
    rests: list[Span] = []
    for start, end in spans:
        whole = (end - start) // room * room
        rows += [[(at, at + room)] for at in range(start, start + whole, room)]
        if start + whole < end:
            rests.append((start + whole, end))
    open_rows: list[tuple[int, int]] = []  # free tokens and number of a row, in order
    for start, end in sorted(rests, key=lambda span: span[0] - span[1]):
        place = bisect.bisect_left(open_rows, (end - start + opening, -1))
        free, number = open_rows.pop(place) if place < len(open_rows) else (room + opening, len(rows))
        if number == len(rows):
            rows.append([])
        rows[number].append((start, end))
        bisect.insort(open_rows, (free - opening - (end - start), number))
    return rows


def stack(rows: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and weights of rows, each (width,), as two arrays (rows, width)."""
    tokens, weights = zip(*rows, strict=True)
    return np.stack(tokens), np.stack(weights)


class Feed:
    """The rows of a run, drawn from several files; each file's rows come in a new order in each epoch.

    Args:
        files: rows, and which of them are trained on
        shares: how often a row of each file is drawn
        seed: what is drawn follows from it and from how much was drawn before
    """

    def __init__(self, files: list[tuple[Rows, list[int]]], shares: list[float], seed: int) -> None:
        self._files, self._shares, self._seed = files, shares, seed
        self._orders: dict[int, tuple[int, list[int]]] = {}
        self.drawn = [0] * len(files)

    def batch(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next rows: tokens int64 and weights float32, both (count, width)."""
        return stack(self._next() for _ in range(count))

    def _next(self) -> tuple[np.ndarray, np.ndarray]:
        draw = random.Random(f"{self._seed}/{sum(self.drawn)}")
        file = draw.choices(range(len(self._files)), self._shares)[0]
        rows, numbers = self._files[file]
        epoch, place = divmod(self.drawn[file], len(numbers))
        if self._orders.get(file, (None,))[0] != epoch:
            order = numbers.copy()
            random.Random(f"{self._seed}/{file}/{epoch}").shuffle(order)
            self._orders[file] = (epoch, order)
        self.drawn[file] += 1
        return rows.row(self._orders[file][1][place])
