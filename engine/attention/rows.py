"""Queries that attend together: those of one session, or of several. Knows no settings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cache import Session
from engine.rotation import Rotation
from engine.step import Span


@dataclass(frozen=True)
class Queries:
    """Queries of one layer.

    Attributes:
        queries: (kv_heads, rows, groups, head_dim) fp32, scaled and unrotated
        positions: (rows,)
        rotation: the layer's
        far_distance: from each query to the start of a far block as it is scored (rows,)
    """

    queries: Tensor
    positions: Tensor
    block_size: int
    rotation: Rotation
    far_distance: Tensor

    @property
    def own(self) -> Tensor:
        """Block of each query (rows,)."""
        return self.positions // self.block_size

    @property
    def first_block(self) -> int:
        return int(self.positions[0]) // self.block_size

    @property
    def last_block(self) -> int:
        return int(self.positions[-1]) // self.block_size

    @cached_property
    def far_queries(self) -> Tensor:
        """Queries as far blocks see them, rotated once for scanning and reading: (kv_heads, rows, groups, head_dim)."""
        return self.rotation(self.queries, self.far_distance[:, None])


@dataclass(frozen=True)
class Rows(Queries):
    """Consecutive queries of one session."""

    session: Session


@dataclass(frozen=True)
class Batch(Queries):
    """Queries of several spans, one span's after the other's.

    Attributes:
        spans: whose they are
        borders: queries borders[i], …, borders[i + 1] - 1 are those of spans[i] (spans + 1,) int64
    """

    spans: tuple[Span, ...]
    borders: NDArray[np.int64]

    def rows(self, place: int) -> tuple[slice, Rows]:
        """One span's queries, and which they are."""
        mine = slice(int(self.borders[place]), int(self.borders[place + 1]))
        queries, distance = self.queries[:, mine], self.far_distance[mine]
        session = self.spans[place].session
        return mine, Rows(queries, self.positions[mine], self.block_size, self.rotation, distance, session)
