"""The mean of a block's keys, as in MoBA (https://arxiv.org/abs/2502.13189)."""

from __future__ import annotations

from torch import Tensor


class Mean:
    """q · mean(keys)."""

    name = "mean"

    def width(self, head_dim: int) -> int:
        return head_dim

    def summarise(self, keys: Tensor) -> Tensor:
        return keys.float().mean(-2)

    def encode(self, queries: Tensor) -> Tensor:
        return queries
