"""How the tokens of a session read what is far from them, where their requests ask for something of their own.

A token's keys and values of the second layer depend on what it read in the first one, so they belong to a token *and*
to how it reads. Each token keeps the reading of the request that brought it, and is computed by it again if need be.
Hence a text has the same keys and values whoever asks for it next, and blocks of other readings have other hashes.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

MARK = struct.Struct("<Iid")
"""Of a run within a block: its first token, and the reading as `Run` tells it."""
EVERYTHING, SERVER = -1, -2
"""What a Run tells in place of blocks per head."""


class Reading(NamedTuple):
    """What a request asks for.

    Attributes:
        blocks_per_head: far blocks that each KV head fetches; None fetches all
        top_p: stop fetching when this share of the attention is covered; None never stops
    """

    blocks_per_head: int | None
    top_p: float | None = None


class Run(NamedTuple):
    """Tokens from `start` on, up to the next run, read so: a Reading as files and catalogues have it.

    Attributes:
        fetch: blocks per head; EVERYTHING, or SERVER for a request that leaves it to the server
        top_p: 0 for none
    """

    start: int
    fetch: int
    top_p: float

    @property
    def reading(self) -> Reading | None:
        """None leaves it to the server."""
        if self.fetch == SERVER:
            return None
        return Reading(None if self.fetch == EVERYTHING else self.fetch, self.top_p or None)


def run_of(start: int, reading: Reading | None) -> Run:
    if reading is None:
        return Run(start, SERVER, 0.0)
    return Run(start, EVERYTHING if reading.blocks_per_head is None else reading.blocks_per_head, reading.top_p or 0.0)


class Readings:
    """Of all tokens of a session; before the first run the server decides."""

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self._runs = list(runs)

    @classmethod
    def whole(cls, reading: Reading | None) -> Readings:
        """Of tokens that are all read alike."""
        made = cls()
        made.begin(0, reading)
        return made

    @property
    def runs(self) -> list[Run]:
        return self._runs[:]

    def begin(self, token: int, reading: Reading | None) -> None:
        """Tokens from `token` on, behind all that there were, are read so."""
        last, run = self._runs[-1] if self._runs else run_of(0, None), run_of(token, reading)
        if last[1:] != run[1:]:
            self._runs.append(run)

    def at(self, token: int) -> Reading | None:
        """How a token is read; None as the server does."""
        place = self._place(token)
        return self._runs[place - 1].reading if place else None

    def end(self, token: int, last: int) -> int:
        """Up to where tokens are read as this one, `last` at most."""
        place = self._place(token)
        return min(last, self._runs[place].start) if place < len(self._runs) else last

    def _place(self, token: int) -> int:
        """How many runs begin at a token or before it."""
        return bisect_right(self._runs, token, key=lambda run: run.start) if self._runs else 0

    def mark(self, first: int, last: int) -> bytes:
        """What tells tokens first, …, last - 1 from others that are read otherwise; nothing if the server decides."""
        place = self._place(first)
        inside = [self._runs[place - 1]] if place else []
        inside += self._runs[place : self._place(last - 1)]
        if all(run.fetch == SERVER for run in inside):
            return b""
        return b"".join(MARK.pack(max(0, run.start - first), run.fetch, run.top_p) for run in inside)

    def since(self, token: int) -> list[Run]:
        """Runs that begin at a token or behind it."""
        return self._runs[self._place(token - 1) :]

    def cut(self, tokens: int) -> None:
        """Only the first `tokens` tokens stay."""
        del self._runs[self._place(tokens - 1) :]

    def copy(self) -> Readings:
        return Readings(self._runs)
