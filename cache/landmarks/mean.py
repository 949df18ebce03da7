"""The mean of a block's keys, as in MoBA (https://arxiv.org/abs/2502.13189)."""

from __future__ import annotations

from torch import Tensor

from cache.landmarks.base import LandmarkRule


class Mean(LandmarkRule):
    """q · mean(keys). By Jensen's inequality exp of it is at most the mean of exp(q · key)."""

    name = "mean"
    estimates_mass = True

    def widths(self, head_dim: int) -> tuple[int, ...]:
        return (head_dim,)

    def summarise(self, keys: Tensor) -> Tensor:
        return keys.float().mean(-2)

    def encode(self, queries: Tensor) -> Tensor:
        return queries
