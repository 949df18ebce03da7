"""Longformer's dilated window (Beltagy et al. 2020, https://arxiv.org/abs/2004.05150), of blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cache.landmarks.placed import Placed

DILATION = 4
RECENCY = 1e-7
"""Per block: less than the cosine's step between distances, more than nothing, so the latest of equals win."""


class Dilated(Placed):
    """Every fourth block back from the query's own, the latest first."""

    name = "dilated"

    def widths(self, head_dim: int) -> tuple[int, ...]:
        return (3,)

    def features(self, blocks: Tensor) -> Tensor:
        angle = 2 * math.pi / DILATION * (blocks % DILATION).double()
        return torch.stack((angle.cos().round(), angle.sin().round(), blocks * RECENCY), dim=-1).float()

    def seen(self, own: Tensor) -> Tensor:
        angle = 2 * math.pi / DILATION * (own % DILATION).double()
        return torch.stack((angle.cos().round(), angle.sin().round(), torch.ones_like(angle)), dim=-1).float()
