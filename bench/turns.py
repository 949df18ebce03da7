"""What is compared takes turns.

The rate at which a shared machine reads memory can be twice as high in some minutes as in others, and that decides
what a token takes: of two things that are measured one after the other, each may have had another machine.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence

Timed = Callable[[], float]
"""Does something; the seconds that it took."""


def take_turns(sides: Sequence[Timed], turns: int) -> list[list[float]]:
    """Seconds of each side, in each turn."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(turns):
        for side, clock in zip(sides, seconds, strict=True):
            clock.append(side())
    return seconds


def several(side: Timed, times: int) -> Timed:
    """The median of as many at once: what ran before disturbs the first one only."""
    return lambda: statistics.median(side() for _ in range(times))


def ratio(one: list[float], other: list[float]) -> float:
    """How many times as long one side takes as the other: the median over turns."""
    return statistics.median(mine / its for mine, its in zip(one, other, strict=True))


def around(seconds: list[float]) -> list[float]:
    """What is taken right before and right after something, of N + 1 turns: (N,)."""
    return [(before + after) / 2 for before, after in itertools.pairwise(seconds)]
