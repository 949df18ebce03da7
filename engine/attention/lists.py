"""What layers of a step do in attention as lists of jobs, kept from step to step.

Between two steps the weights have pushed Python out of all caches, so laying out jobs anew costs a decoded token more
than many of its jobs. Steps of one shape (as many queries, which read as many blocks) have the same jobs: who takes
part, where they stand and where their blocks lie is told to desks that stay where they are.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from cache import Tasks
from engine.attention.base import Jobs, LayerGeometry, RetrievalSettings
from engine.attention.desk import Desk, Given, Scratch
from engine.attention.plans import Plan, Standing
from engine.attention.writing import Writing
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
class Seats:
    """Where the layers of a step sit down that come one after the other.

    Attributes:
        plans: of queries that attend one plan after the other
        standings: how they stand, once a layer needs it
        writing: puts their keys and values into the cache, once a layer needs that apart
        desks: for layers that look at landmarks and for those that do not, once there is one
    """

    plans: tuple[Plan, ...]
    standings: tuple[Standing, ...] | None = None
    writing: Writing | None = None
    desks: dict[bool, tuple[Desk, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """A step as layers that read alike go through it.

    Attributes:
        alone: spans that attend by themselves, in their order, for one may read what another one of its session writes;
            which positions of the step are theirs, and seats for one piece after the other, or None for the
            reference's way
        together: seats of spans of one position, or of a token and the landmark behind it, as many at once as read
            alike and a tier bears
    """

    alone: tuple[tuple[Span, slice, Seats | None], ...]
    together: Seats


@dataclass(frozen=True)
class Kind:
    """Layers that go through a step alike, and their plans, which other kinds may share."""

    layers: tuple[int, ...]
    plans: tuple[Plan, ...]


def different(kinds: Sequence[Kind]) -> list[Plan]:
    """All plans of kinds, each once."""
    return list({id(plan): plan for kind in kinds for plan in kind.plans}.values())


class Lists:
    """The jobs of steps of one shape.

    Args:
        desks: of each kind
        standings: of each plan that is `different`
    """

    def __init__(self, desks: Sequence[tuple[Desk, ...]], standings: Sequence[Standing]) -> None:
        self.desks, self.standings, self.watch = desks, standings, Stopwatch()
        self._jobs: list[Jobs] | None = None
        self._tensors: tuple[Tensor, ...] = ()
        self._given: list[list[Given]] = []
        self._scales: Mapping[int, float | Tensor] = {}

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
        if not (same and scales is self._scales):
            q, k, v, output = self._tensors = tensors
            self._scales = scales
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


def first_alike(layers: list[LayerGeometry], settings: RetrievalSettings) -> list[int]:
    """Of each layer the first that turns and reads as much as it does: not so are dense ones."""
    kinds = [(id(geometry.rotation), geometry.window, at < settings.dense_layers) for at, geometry in enumerate(layers)]
    return [kinds.index(kind) for kind in kinds]
