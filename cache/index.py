"""What a session knows about its sealed blocks in one layer: their landmarks, and what the settings ask beside them.

Owns which vectors belong to a block. Knows neither rules nor positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cache.vectors import Vectors


@dataclass(frozen=True)
class IndexShape:
    """What is kept of a block, per KV head.

    Attributes:
        width: channels of a landmark
        landmarks: landmarks of a block
        values: channels of its mean value, 0 to keep none
        outlying: whether to keep how badly its landmark represents it
    """

    width: int
    landmarks: int = 1
    values: int = 0
    outlying: bool = False

    @property
    def channels(self) -> int:
        """Numbers kept of a block, per KV head."""
        return self.landmarks * self.width + self.values + self.outlying


@dataclass(frozen=True)
class Summary:
    """What stands for sealed blocks, as far as the shape of the index asks for it.

    Attributes:
        landmarks: (kv_heads, blocks, landmarks, width)
        values: mean values (kv_heads, blocks, head_dim)
        outlying: how badly the landmark represents the block (kv_heads, blocks)
    """

    landmarks: Tensor
    values: Tensor | None = None
    outlying: Tensor | None = None


class BlockIndex:
    """Summaries of blocks 0, 1, 2, … of a session.

    Args:
        kv_heads: heads that choose separately
        shape: what is kept of a block
    """

    def __init__(self, kv_heads: int, shape: IndexShape) -> None:
        self.shape = shape
        self.count = 0
        self._kv_heads = kv_heads
        self._landmarks = Vectors(kv_heads, shape.width)
        self._values = Vectors(kv_heads, shape.values)
        self._outlying = Vectors(kv_heads, 1)

    def add(self, summary: Summary) -> None:
        """Append the next blocks."""
        self._landmarks.add(summary.landmarks.flatten(1, 2))
        if self.shape.values:
            assert summary.values is not None
            self._values.add(summary.values)
        if self.shape.outlying:
            assert summary.outlying is not None
            self._outlying.add(summary.outlying[..., None])
        self.count += summary.landmarks.shape[1]

    def scores(self, queries: Tensor, count: int) -> Tensor:
        """Dot products of queries (kv_heads, queries, width) with the landmarks of the first `count` blocks.

        Returns:
            (kv_heads, queries, count * landmarks), a block's landmarks side by side
        """
        return self._landmarks.scores(queries, count * self.shape.landmarks)

    def weigh_values(self, weights: Tensor) -> Tensor:
        """Mean values of the first blocks, summed by weights (kv_heads, queries, blocks).

        Returns:
            (kv_heads, queries, head_dim)
        """
        return self._values.weigh(weights)

    def outlying(self, count: int) -> Tensor:
        """How badly the first `count` blocks are represented: (kv_heads, count)."""
        return torch.cat([rows[..., 0] for _, rows in self._outlying.parts(count)], dim=1)

    def fork(self, count: int) -> BlockIndex:
        """An index of the first `count` blocks that shares their storage."""
        fork = BlockIndex(self._kv_heads, self.shape)
        fork.count = count
        fork._landmarks = self._landmarks.fork(count * self.shape.landmarks)
        fork._values = self._values.fork(count if self.shape.values else 0)
        fork._outlying = self._outlying.fork(count if self.shape.outlying else 0)
        return fork
