"""Queries of one session that attend together. Knows no settings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from cache import Session
from engine.rotation import Rotation


@dataclass(frozen=True)
class Rows:
    """Consecutive queries of one session in one layer.

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
    session: Session

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
