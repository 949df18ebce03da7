"""ArkVale (Chen et al. 2024, NeurIPS): the block's centre, and its mean radius in each channel."""

from __future__ import annotations

import torch
from torch import Tensor

from cache.landmarks.base import LandmarkRule


class BoxMean(LandmarkRule):
    """q·centre + Σ_channels |q|·radius, with the mean of the keys and their mean absolute deviation from it.

    The radius finds the block with one good key among poor ones; the centre alone estimates what a block weighs.
    """

    name = "box-mean"
    estimates_mass = True

    def widths(self, head_dim: int) -> tuple[int, ...]:
        return head_dim, head_dim

    def summarise(self, keys: Tensor) -> Tensor:
        keys = keys.float()
        centre = keys.mean(-2, keepdim=True)
        radius = (keys - centre).abs().mean(-2)
        return torch.cat((centre.squeeze(-2), radius), dim=-1)

    def encode(self, queries: Tensor) -> Tensor:
        return torch.cat((queries, queries.abs()), dim=-1)

    def judge(self, products: Tensor, size: int) -> tuple[Tensor, Tensor]:
        return products.sum(-1), products[..., 0]
