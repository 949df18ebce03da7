"""What layers of a step do in attention as lists of jobs, kept from step to step.

Between two steps the weights have pushed Python out of all caches, so laying out jobs anew costs a decoded token more
than many of its jobs. Steps of one shape (as many queries, which read as many blocks) have the same jobs: who takes
part, where they stand and where their blocks lie is told to desks that stay where they are.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cache import Tasks
from engine.attention.base import Jobs
from engine.attention.desk import Desk, Given, Scratch
from engine.attention.plans import Plan
from engine.step import Span

MOST = 16
"""Shapes that are kept."""


class Stopwatch:
    """Jobs that take the time of what others do between them.

    Attributes:
        start, stop: lists of one job (1, JOB_WORDS), to be done any number of times
    """

    def __init__(self) -> None:
        from engine.attention.clock_kernels import shared_clock

        self._passed = np.zeros(1, np.int64)  # nanoseconds
        at = self._passed.ctypes.data
        self._tasks = [Tasks([shared_clock().task((at, times), 1)]) for times in (-1, 1)]
        self.start, self.stop = (tasks.jobs[0] for tasks in self._tasks)

    def taken(self) -> float:
        """Seconds since it was last asked."""
        seconds = int(self._passed[0]) / 1e9
        self._passed[0] = 0
        return seconds


@dataclass
class Planned:
    """A step as the layers of one kind go through it.

    Attributes:
        alone: spans that attend by themselves, in their order, for one may read what another one of its session writes;
            which positions of the step are theirs, and desks for one piece after the other, or None for the
            reference's way
        together: plans of spans of one position, or of a token and the landmark behind it, as many at once as read
            alike and a tier bears
        desks: for these plans, once a layer needs them by itself
    """

    alone: tuple[tuple[Span, slice, tuple[Desk, ...] | None], ...]
    together: tuple[Plan, ...]
    desks: tuple[Desk, ...] | None = None


@dataclass(frozen=True)
class Kind:
    """Layers that go through a step alike, and their plans."""

    layers: tuple[int, ...]
    plans: tuple[Plan, ...]


class Lists:
    """The jobs of steps of one shape.

    Args:
        desks: of each kind
    """

    def __init__(self, desks: Sequence[tuple[Desk, ...]]) -> None:
        self.desks, self.watch = desks, Stopwatch()
        self._jobs: list[Jobs] | None = None
        self._tensors: tuple[Tensor, ...] = ()
        self._given: list[list[Given]] = []

    def leave(self) -> None:
        """A step is done: nothing of its sessions is held any longer."""
        for desks in self.desks:
            for desk in desks:
                desk.leave()

    def given(
        self, kinds: Sequence[Kind], scales: Mapping[int, float | Tensor], tensors: tuple[Tensor, ...]
    ) -> list[list[Given]]:
        """What each layer of each kind gets: the same as in the step before, if it is."""
        same = len(tensors) == len(self._tensors) and all(map(operator.is_, tensors, self._tensors))
        same = same and all(
            isinstance(scales[layer], float) and each.scale == scales[layer]
            for kind, mine in zip(kinds, self._given, strict=True)
            for layer, each in zip(kind.layers, mine, strict=True)
        )
        if not same:
            q, k, v, output = self._tensors = tensors
            self._given = [[Given(q, k, v, scales[layer], output) for layer in kind.layers] for kind in kinds]
        return self._given

    def jobs(
        self, kinds: Sequence[Kind], scales: Mapping[int, float | Tensor], tensors: tuple[Tensor, ...], scratch: Scratch
    ) -> list[Jobs]:
        """Of each layer (jobs, JOB_WORDS); the same arrays step after step.

        Args:
            tensors: what layers get and give: q, k, v, output
        """
        parts: dict[int, list[Jobs]] = {layer: [] for layer in scales}
        for kind, desks, given in zip(kinds, self.desks, self.given(kinds, scales, tensors), strict=True):
            for desk in desks:
                both = desk.jobs(kind.layers, given, scratch)
                if self._jobs is None:
                    timed = desk.plan.reach.fetch is not None
                    for layer, choosing, attending in zip(kind.layers, *both, strict=True):
                        watched = [self.watch.start, choosing, self.watch.stop] if timed else [choosing]
                        parts[layer] += [*watched, attending]
        if self._jobs is None:
            self._jobs = [np.concatenate(each) for each in parts.values()]
        return self._jobs
