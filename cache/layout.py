"""The shape of what is stored. Facts learned from the model live here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class CacheLayout:
    """Shapes of a model's keys and values, and how a session is cut into blocks.

    A *slot position* counts everything that is stored; with trained landmarks the last position of each
    block holds a landmark, so a block has one text token less than it has positions.

    Attributes:
        layers: attention layers
        kv_heads: key/value heads of a layer
        head_dim: channels of a key or a value
        block_size: positions of a block
        dtype: of stored keys and values
        landmark_positions: 1 if each block ends in a landmark token, else 0
    """

    layers: int
    kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype = torch.float32
    landmark_positions: int = 0

    @property
    def text_per_block(self) -> int:
        """Text tokens that a full block holds."""
        return self.block_size - self.landmark_positions

    @property
    def block_bytes(self) -> int:
        """Bytes of one block's keys and values over all layers."""
        return 2 * self.layers * self.kv_heads * self.block_size * self.head_dim * self.dtype.itemsize

    def positions(self, text: int) -> int:
        """Positions that `text` tokens from a session's start take, landmarks of full blocks included."""
        return text + self.landmark_positions * (text // self.text_per_block)

    def blocks(self, text: int) -> int:
        """Blocks that `text` tokens from a session's start touch."""
        return -(-self.positions(text) // self.block_size)
