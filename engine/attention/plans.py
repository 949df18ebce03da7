"""Where the queries of a step stand and what follows from it alone: worked out once for all layers that read alike."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import BlockStore
from engine.rotation import PAGE, Page, Rotation
from engine.step import Span

LANES = 16
ROOM = 256
"""Blocks by which the room to choose from them grows."""
Numbers = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Reach:
    """What a query reads: its own block, recent ones before it, the first ones, and so many that it chooses.

    `fetch` is None where it has no choice.
    """

    recent: int
    shared: int
    fetch: int | None

    @property
    def blocks(self) -> int:
        """Of each head."""
        return self.recent + 1 + self.shared + (self.fetch or 0)


@dataclass(frozen=True)
class Plan:
    """Queries that attend together: consecutive ones of one span, or all of several spans.

    Attributes:
        rows: which of the step's positions they are, a slice where they lie side by side
        spans: whose they are
        positions: in their sessions (T,)
        reach: what each of them reads
        rotation: of the layers
        size: positions of a block
        bounded: far blocks stand just before the recent ones
    """

    rows: slice | Tensor
    spans: tuple[Span, ...]
    positions: Numbers
    reach: Reach
    rotation: Rotation
    size: int
    bounded: bool

    @property
    def store(self) -> BlockStore:
        """Of the spans' sessions."""
        return self.spans[0].session.store

    @cached_property
    def borders(self) -> tuple[int, ...]:
        """Queries borders[i], …, borders[i + 1] - 1 are those of spans[i] (spans + 1,)."""
        if len(self.spans) == 1:
            return 0, len(self.positions)
        return tuple(itertools.accumulate((len(span.token_ids) for span in self.spans), initial=0))

    @property
    def far_distance(self) -> Tensor:
        """From each query to the start of a far block as it is scored (T,).

        Bounded, every far block stands just before the recent ones; absolute, keys carry their true positions.
        """
        positions = torch.from_numpy(self.positions)
        return (self.reach.recent + 1) * self.size + positions % self.size if self.bounded else positions

    @cached_property
    def lasts(self) -> list[int]:
        """The last block of each span's queries."""
        return [int(self.positions[end - 1]) // self.size for end in self.borders[1:]]

    @property
    def last(self) -> int:
        """The last one of all these blocks."""
        return max(self.lasts)

    @property
    def choosable(self) -> int:
        """Blocks before the last one that a query may not choose any more."""
        return max(0, self.last - self.reach.recent)

    @property
    def shape(self) -> tuple[object, ...]:
        """What plans share that can stand in the same arrays."""
        return self.borders, self.reach, self.room

    @property
    def room(self) -> int:
        """What kernels need to choose: it grows by steps, so that sessions outgrow it seldom."""
        return padded(-(-self.choosable // ROOM) * ROOM)

    # -- where blocks lie, for a tier that has to be asked -----------------------------------------------------

    @cached_property
    def _tables(self) -> tuple[Numbers, Numbers]:
        """Slots of the spans' blocks, one span's after the other's, and where each query's begin (T,)."""
        tables = [
            span.session.slots_between(0, last + 1).numpy() for span, last in zip(self.spans, self.lasts, strict=True)
        ]
        starts = np.cumsum([0, *map(len, tables)])[:-1]
        return np.concatenate(tables), np.repeat(starts, np.diff(self.borders))

    def slots(self, numbers: Numbers) -> Tensor:
        """Slots of block numbers (…, T, M), each query's in its own session; anything for those below 0."""
        table, starts = self._tables
        return torch.from_numpy(table[np.maximum(numbers, 0) + starts[:, None]])

    @cached_property
    def own_slots(self) -> Tensor:
        """Slots of the queries' own blocks (T,)."""
        return self.slots((self.positions // self.size)[:, None])[:, 0]


class Standing:
    """A plan as kernels read it, in arrays that stay where they are while plans of the same shape come and go.

    Small calls of NumPy cost a decoded token more than all of this: one call of a kernel works it out.

    Args:
        heads: of a block
        sinks: first blocks, which nobody chooses

    Attributes:
        rows, positions: of each query which of the step's positions it is, and its position (T,)
        offsets: its place in its block (T,)
        ends: the first block that it may not choose any more (T,)
        borders: see `Plan` (spans + 1,)
        fixed: the blocks that it reads whatever it chooses, shared and near ones (T, F), below 0 for none
        latest: those that it fetches if it must choose without looking, -1 for none (T, K)
        tables: address of its session's table of slots (T,)
        own: places of the queries' own blocks in a tier's pools (H, T)
        far_turns: what turns it by the distance of far blocks as they are scored (2, T, S)
        own_turns: what turns its key as it is stored, relative to its block (2, T, S)
        turns: cosine and sine of its position (T, 2, R)
        selected: far blocks that all queries fetch together, in one head
    """

    def __init__(self, plan: Plan, heads: int, sinks: int) -> None:
        from engine.attention import stand_kernels

        count, reach, channels = len(plan.positions), plan.reach, plan.rotation.channels
        self.rows, self.positions, self.offsets, self.ends, self.tables, self._turned = np.zeros((6, count), np.int64)
        self.borders = np.array(plan.borders)
        self.fixed = np.empty((count, reach.shared + reach.recent + 1), np.int64)
        self.latest = np.empty((count, reach.fetch or 0), np.int64)
        self.own = np.empty((heads, count), np.int64)
        self.far_turns, self.own_turns = (np.empty((2, count, channels), np.float32) for _ in range(2))
        self.turns = np.empty((count, 2, channels // 2), np.float32)
        self._near = plan.rotation.first((reach.recent + 2 if plan.bounded else 1) * plan.size)
        given = (self.positions, self.tables, self._turned, self._near.turns, plan.size, reach.recent, reach.shared)
        told = (self.offsets, self.ends, self.fixed, self.latest, self.own, self.far_turns, self.own_turns, self.turns)
        self._stand, how = stand_kernels.stand, (sinks, plan.bounded, plan.rotation.interleaved)
        self._words = stand_kernels.words(*given, *how, *told)
        self._address, self._rows = self._words.ctypes.data, slice(0, 0)
        self.selected = 0
        self.take(plan)

    def take(self, plan: Plan) -> None:
        """Another plan of the same shape."""
        if isinstance(plan.rows, Tensor):
            self.rows[:], self._rows = plan.rows.numpy(), slice(0, 0)
        elif plan.rows != self._rows:
            self.rows[:], self._rows = np.arange(plan.rows.start, plan.rows.stop), plan.rows
        self.positions[:] = plan.positions
        held = []
        for span, begin, end in zip(plan.spans, plan.borders, plan.borders[1:], strict=False):
            self.tables[begin:end] = span.session.slots_between(0, 1).data_ptr()
            held += self._turn(plan.rotation, begin, end)
        self.selected = self._stand(self._address)

    def _turn(self, rotation: Rotation, begin: int, end: int) -> list[Page]:
        """Tell where the turns of queries begin, …, end - 1 lie, which follow each other; to be kept meanwhile."""
        row, first, held = 2 * 4 * rotation.channels, int(self.positions[begin]), []
        while begin < end:
            page, inside = rotation.page(first // PAGE), first % PAGE
            taken = min(PAGE - inside, end - begin)
            self._turned[begin : begin + taken] = page.address + row * np.arange(inside, inside + taken)
            first, begin = first + taken, begin + taken
            held.append(page)
        return held


def padded(blocks: int) -> int:
    """The room that kernels need to choose from so many blocks."""
    return -(-blocks // LANES) * LANES + 4 * LANES


def sines(rotation: Rotation, positions: Numbers) -> Floats:
    """Cosine and sine of positions (P,) in each pair of channels: (2, P, R); no pairs for a layer without positions."""
    if rotation.frequencies is None:
        return np.empty((2, len(positions), 0), np.float32)
    angles = positions[:, None] * rotation.frequencies.numpy()
    return np.stack((np.cos(angles), np.sin(angles))).astype(np.float32)
