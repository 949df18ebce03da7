"""What a session remembers of the requests that changed it: where each one began, and where its answer did.

A turn ends where the next one begins, so that nothing has to be noted when a request ends, or is cut off. Knows no
session: tokens are counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

MOST_TURNS = 4096
"""Of a session; the oldest are forgotten first."""


@dataclass(frozen=True)
class Turn:
    """A request: it was given the text tokens [start, answer), and generated those from `answer` on.

    Attributes:
        index: how many turns came before it, those that are forgotten included
        blocks_per_head: what an audit had raised the session's to when it began
    """

    index: int
    start: int
    answer: int
    blocks_per_head: int | None = None


class Turns:
    """The turns of one session, oldest first."""

    def __init__(self, kept: Iterable[Turn] = ()) -> None:
        self._kept = list(kept)
        self._next = self._kept[-1].index + 1 if self._kept else 0
        self._untold = 0  # number of the first one that changed since somebody was told

    def __iter__(self) -> Iterator[Turn]:
        return iter(self._kept)

    def begin(self, start: int, answer: int, blocks_per_head: int | None) -> None:
        """A request begins; one before it that changed nothing does not count."""
        self.cut(start)
        self._kept.append(Turn(self._next, start, answer, blocks_per_head))
        self._next += 1
        del self._kept[:-MOST_TURNS]

    def at(self, token: int) -> Turn | None:
        """The turn that a token belongs to, if it is known."""
        return next((turn for turn in reversed(self._kept) if turn.start <= token), None)

    def cut(self, tokens: int) -> None:
        """Only the first `tokens` tokens stay."""
        while self._kept and self._kept[-1].start >= tokens:
            self._next = self._kept.pop().index
        self._untold = min(self._untold, self._next)
        if self._kept:
            last = self._kept[-1]
            self._kept[-1] = replace(last, answer=min(last.answer, tokens))

    def untold(self) -> list[Turn]:
        """Those that changed since `told` was called; what a `cut` did to the last one is not among it."""
        return [turn for turn in self._kept if turn.index >= self._untold]

    def told(self) -> None:
        """Somebody knows all of them now."""
        self._untold = self._next

    @property
    def oldest(self) -> int:
        """Number of the first one that is remembered."""
        return self._kept[0].index if self._kept else self._next

    def with_ends(self, tokens: int) -> list[tuple[Turn, int]]:
        """Each with where it ends, in a session of so many tokens; one that changed nothing is left out."""
        ends = [turn.start for turn in self._kept[1:]] + [tokens]
        return [(turn, end) for turn, end in zip(self._kept, ends, strict=False) if end > turn.start]

    def copy(self) -> Turns:
        copy = Turns(self._kept)
        copy._next = self._next  # not known from those that it keeps, if there are none
        return copy
