"""Clusters of a block's keys, as RetroInfer keeps of a segment (Chen et al. 2025, https://arxiv.org/abs/2505.02922).

Similar keys of a block share a landmark wherever they stand in it, so few landmarks represent it well, and one key
unlike all others can have a landmark of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache.landmarks.base import LandmarkRule

ROUNDS = 4
EMPTY = -1e4
"""Score of a cluster without keys; exp of it is 0."""


class Clusters(LandmarkRule):
    """log Σ_clusters share·exp(q·centroid): k-means of the keys, each centroid with the logarithm of its share."""

    name = "clusters"
    estimates_mass = True

    def widths(self, head_dim: int) -> tuple[int, ...]:
        return head_dim, 1

    def summarise(self, keys: Tensor) -> Tensor:
        mean = keys.float().mean(-2)
        return torch.cat((mean, torch.zeros_like(mean[..., :1])), dim=-1)

    def encode(self, queries: Tensor) -> Tensor:
        return torch.cat((queries, torch.ones_like(queries[..., :1])), dim=-1)

    def landmarks(self, keys: Tensor, first: int, count: int) -> Tensor:
        keys = keys.float()
        centroids = spread(keys, count)  # (H, N, count, D)
        for _ in range(ROUNDS):
            member = torch.nn.functional.one_hot(nearest(keys, centroids), count).to(keys.dtype)  # (H, N, B, count)
            sizes = member.sum(-2)[..., None]  # (H, N, count, 1)
            centroids = torch.where(sizes > 0, member.mT @ keys / sizes.clamp(min=1), centroids)
        shares = (sizes / keys.shape[-2]).log().clamp(min=EMPTY)
        return torch.cat((centroids, shares), dim=-1)

    def join(self, scores: Tensor) -> Tensor:
        return scores.logsumexp(-1)


def nearest(keys: Tensor, centroids: Tensor) -> Tensor:
    """Number of the nearest centroid (H, N, M, D) of each key (H, N, B, D): (H, N, B)."""
    return (keys @ centroids.mT - centroids.square().sum(-1)[..., None, :] / 2).argmax(-1)


def spread(keys: Tensor, count: int) -> Tensor:
    """Keys far from each other to start from, (H, N, count, D): each next one is the farthest from those before it."""
    distance = (keys - keys.mean(-2, keepdim=True)).square().sum(-1)  # (H, N, B)
    chosen: list[Tensor] = []
    for _ in range(count):
        far = distance.argmax(-1)[..., None, None].expand(*keys.shape[:2], 1, keys.shape[-1])
        chosen.append(keys.gather(2, far))
        apart = (keys - chosen[-1]).square().sum(-1)
        distance = apart if len(chosen) == 1 else torch.minimum(distance, apart)
    return torch.cat(chosen, dim=2)
