"""Mean and variance of a block's keys: the first two cumulants of q · key.

For keys that scatter normally around their mean, log(mean of exp(q · key)) is exactly q · mean + ½ qᵀ Σ q (the
cumulant generating function of a Gaussian). With the diagonal of Σ alone it stays a dot product, of (q, q²/2) with
(mean, variance): as many channels as Quest's box, but an estimate of the block's mass, where the box bounds the
score of its best key.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache.landmarks.base import LandmarkRule


class Moments(LandmarkRule):
    """q·mean + ½ Σ_channels q²·variance."""

    name = "moments"
    estimates_mass = True

    def width(self, head_dim: int) -> int:
        return 2 * head_dim

    def summarise(self, keys: Tensor) -> Tensor:
        keys = keys.float()
        return torch.cat((keys.mean(-2), keys.var(-2, correction=0)), dim=-1)

    def encode(self, queries: Tensor) -> Tensor:
        return torch.cat((queries, queries.square() / 2), dim=-1)
