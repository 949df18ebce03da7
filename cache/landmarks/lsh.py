"""Reformer's hashing (Kitaev et al. 2020, https://arxiv.org/abs/2001.04451): keys in the query's bucket."""

from __future__ import annotations

import torch
from torch import Tensor

from cache.landmarks.base import LandmarkRule

ROUNDS, BUCKETS = 4, 16


class LSH(LandmarkRule):
    """Keys of the block that fall into the query's bucket, over all rounds of hashing.

    A bucket is the largest of (x·R, -x·R) for random directions R, as in the paper.
    """

    name = "lsh"
    rounds = False

    def widths(self, head_dim: int) -> tuple[int, ...]:
        return (ROUNDS * BUCKETS,)

    def summarise(self, keys: Tensor) -> Tensor:
        return buckets(keys).sum(-2)

    def encode(self, queries: Tensor) -> Tensor:
        return buckets(queries)


def buckets(vectors: Tensor) -> Tensor:
    """One-hot buckets (…, ROUNDS * BUCKETS) of vectors (…, D)."""
    generator = torch.Generator().manual_seed(vectors.shape[-1])  # the same directions in every process
    directions = torch.randn(ROUNDS, vectors.shape[-1], BUCKETS // 2, generator=generator).to(vectors.device)
    along = vectors.float()[..., None, None, :] @ directions  # (…, ROUNDS, 1, BUCKETS / 2)
    best = torch.cat((along, -along), dim=-1).squeeze(-2).argmax(-1)
    return torch.nn.functional.one_hot(best, BUCKETS).flatten(-2).float()
