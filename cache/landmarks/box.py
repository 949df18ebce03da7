"""Quest (Tang et al. 2024, https://arxiv.org/abs/2406.10774): an upper bound of q · k over the block's bounding box."""

from __future__ import annotations

import torch
from torch import Tensor

from cache.landmarks.base import LandmarkRule


class Box(LandmarkRule):
    """Σ_channels max(q·min, q·max): the positive part of q meets the maxima, the negative part the minima."""

    name = "box"

    def widths(self, head_dim: int) -> tuple[int, ...]:
        return (2 * head_dim,)

    def summarise(self, keys: Tensor) -> Tensor:
        return torch.cat((keys.amax(-2), keys.amin(-2)), dim=-1)

    def encode(self, queries: Tensor) -> Tensor:
        return torch.cat((queries.clamp(min=0), queries.clamp(max=0)), dim=-1)
