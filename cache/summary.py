"""What stands for blocks in an index."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Summary:
    """What stands for sealed blocks, as far as the shape of the index asks for it.

    Attributes:
        landmarks: (kv_heads, blocks, landmarks, width)
        values: mean values (kv_heads, blocks, head_dim)
        slopes: two vectors (kv_heads, blocks, head_dim) each: the product of a query with the first one tells how much
            of the second one to add to the mean value
        outlying: how badly the landmark represents the block (kv_heads, blocks)
        copies: keys and values (kv_heads, blocks, positions, head_dim) each
    """

    landmarks: Tensor
    values: Tensor | None = None
    slopes: tuple[Tensor, Tensor] | None = None
    outlying: Tensor | None = None
    copies: tuple[Tensor, Tensor] | None = None
