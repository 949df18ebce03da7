"""Where the queries of a step stand and what follows from it alone: worked out once for all layers that read alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import BlockStore
from engine.rotation import Rotation
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
    def borders(self) -> Numbers:
        """Queries borders[i], …, borders[i + 1] - 1 are those of spans[i] (spans + 1,)."""
        if len(self.spans) == 1:
            return np.array([0, len(self.positions)])
        return np.cumsum([0, *(len(span.token_ids) for span in self.spans)])

    # -- where they stand ------------------------------------------------------------------------------------

    @cached_property
    def own(self) -> Numbers:
        """Block of each query (T,)."""
        return self.positions // self.size

    @cached_property
    def offsets(self) -> Tensor:
        """Place of each query in its block (T,)."""
        return torch.from_numpy(self.positions % self.size)

    @cached_property
    def far_distance(self) -> Tensor:
        """From each query to the start of a far block as it is scored (T,).

        Bounded, every far block stands just before the recent ones; absolute, keys carry their true positions.
        """
        if not self.bounded:
            return torch.from_numpy(self.positions)
        return (self.reach.recent + 1) * self.size + self.offsets

    @cached_property
    def far_turns(self) -> tuple[Tensor, Tensor]:
        """What turns a query by that distance: (T, 1, R) each."""
        return self.rotation.turns(self.far_distance[:, None], torch.float32)

    @cached_property
    def own_turns(self) -> tuple[Tensor, Tensor]:
        """What turns a key as it is stored, relative to its block: (T, 1, R) each."""
        return self.rotation.turns(self.offsets[:, None], torch.float32)

    @cached_property
    def turns(self) -> Floats:
        """Cosine and sine of each position (T, 2, R)."""
        return sines(self.rotation, self.positions).swapaxes(0, 1).copy()

    # -- what they read --------------------------------------------------------------------------------------

    @cached_property
    def ends(self) -> Numbers:
        """The first block of each query that it may not choose any more (T,)."""
        return self.own - self.reach.recent

    @cached_property
    def choosable(self) -> int:
        """Blocks before the last of these ends."""
        return max(0, int(self.ends.max()))

    @property
    def shape(self) -> tuple[object, ...]:
        """What plans share that can stand in the same arrays."""
        return len(self.positions), tuple(self.borders), self.reach, self.room

    @property
    def room(self) -> int:
        """What kernels need to choose: it grows by steps, so that sessions outgrow it seldom."""
        return padded(-(-self.choosable // ROOM) * ROOM)

    @cached_property
    def fixed(self) -> Numbers:
        """The blocks that each query reads whatever it chooses, shared and near ones: (T, F), below 0 for none."""
        near = self.own[:, None] - np.arange(self.reach.recent, -1, -1)
        first = np.arange(self.reach.shared)
        first = np.where(first < self.ends[:, None], first, -1)  # else it is a near one
        return np.concatenate((first, near), axis=1)

    @cached_property
    def tables(self) -> tuple[Numbers, Numbers]:
        """Slots of the spans' blocks, one span's after the other's, and where each query's begin (T,)."""
        tables = [
            span.session.slots_between(0, last + 1).numpy() for span, last in zip(self.spans, self._last, strict=True)
        ]
        starts = np.cumsum([0, *map(len, tables)])[:-1]
        starts = np.repeat(starts, np.diff(self.borders))
        return tables[0] if len(tables) == 1 else np.concatenate(tables), starts

    @property
    def _last(self) -> list[int]:
        """The last block of each span's queries."""
        return [int(self.own[end - 1]) for end in self.borders[1:]]

    def slots(self, numbers: Numbers) -> Tensor:
        """Slots of block numbers (…, T, M), each query's in its own session; anything for those below 0."""
        table, starts = self.tables
        return torch.from_numpy(table[np.maximum(numbers, 0) + starts[:, None]])

    @cached_property
    def own_slots(self) -> Tensor:
        """Slots of the queries' own blocks (T,)."""
        return self.slots(self.own[:, None])[:, 0]


class Standing:
    """A plan as kernels read it, in arrays that stay where they are while plans of the same shape come and go.

    Args:
        heads: of a block

    Attributes:
        rows, positions, offsets, ends: of each query which of the step's positions it is, and see `Plan` (T,)
        borders: see `Plan` (spans + 1,)
        fixed: see `Plan` (T, F)
        begins: where each query's blocks begin in the plan's table of slots (T,)
        own: places of the queries' own blocks in a tier's pools (H, T)
        far_turns, own_turns, turns: see `Plan` (2, T, S), (2, T, S) and (T, 2, R)
    """

    rows: Numbers
    positions: Numbers
    offsets: Numbers
    ends: Numbers
    borders: Numbers
    fixed: Numbers
    begins: Numbers
    own: Numbers
    far_turns: Floats
    own_turns: Floats
    turns: Floats

    def __init__(self, plan: Plan, heads: int) -> None:
        self._heads = np.arange(heads)[:, None]
        for name, values in self._of(plan).items():
            setattr(self, name, np.array(values, order="C"))

    def take(self, plan: Plan) -> None:
        """Another plan of the same shape."""
        for name, values in self._of(plan).items():
            getattr(self, name)[...] = values

    def _of(self, plan: Plan) -> dict[str, Numbers | Floats]:
        rows = plan.rows
        far_turns, own_turns = (torch.stack(turns)[:, :, 0].numpy() for turns in (plan.far_turns, plan.own_turns))
        return {
            "rows": np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows.numpy(),
            "positions": plan.positions,
            "offsets": plan.offsets.numpy(),
            "ends": plan.ends,
            "borders": plan.borders,
            "fixed": plan.fixed,
            "begins": plan.tables[1],
            "own": plan.own_slots.numpy() * len(self._heads) + self._heads,
            "far_turns": far_turns,
            "own_turns": own_turns,
            "turns": plan.turns,
        }


def padded(blocks: int) -> int:
    """The room that kernels need to choose from so many blocks."""
    return -(-blocks // LANES) * LANES + 4 * LANES


def sines(rotation: Rotation, positions: Numbers) -> Floats:
    """Cosine and sine of positions (P,) in each pair of channels: (2, P, R); no pairs for a layer without positions."""
    if rotation.frequencies is None:
        return np.empty((2, len(positions), 0), np.float32)
    angles = positions[:, None] * rotation.frequencies.numpy()
    return np.stack((np.cos(angles), np.sin(angles))).astype(np.float32)
