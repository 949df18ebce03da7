"""How a block's mean value turns with the query that reads it.

Attention inside a block is a softmax, and to first order in the query its mean value is

    mean value + Cov(value, key) q

(the derivative of a softmax average at q = 0). Of the covariance that part is kept which goes with the direction in
which the block's keys scatter most: two vectors for each block. The first one tells at once how much q · key scatters
along that direction, which channels taken by themselves do not (`cache.landmarks.moments`).
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 2
"""Of the power iteration that finds the direction; further ones do not make the estimate better."""


def slopes(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Covariances of keys and of values with where the keys stand along their first direction, in deviations.

    Args:
        keys, values: (…, B, D) fp32

    Returns:
        What a query is multiplied with, and how far the mean value goes for each unit of that: (…, D) each
    """
    keys, values = keys - keys.mean(-2, keepdim=True), values - values.mean(-2, keepdim=True)
    along = (keys * main_direction(keys)).sum(-1, keepdim=True)  # (…, B, 1)
    along = along / along.square().mean(-2, keepdim=True).sqrt().clamp(min=torch.finfo(keys.dtype).tiny)
    return (keys * along).mean(-2), (values * along).mean(-2)


def main_direction(vectors: Tensor) -> Tensor:
    """The unit vector (…, 1, D) along which vectors (…, B, D), as seen from nought, reach farthest."""
    tiny = torch.finfo(vectors.dtype).tiny
    farthest = vectors.square().sum(-1, keepdim=True).argmax(-2, keepdim=True)  # (…, 1, 1), where the search starts
    direction = vectors.gather(-2, farthest.expand(*farthest.shape[:-1], vectors.shape[-1]))  # (…, 1, D)
    for _ in range(ROUNDS):  # sums: for products of few matrices torch calls up threads that take longer than the work
        along = (vectors * direction).sum(-1, keepdim=True)  # (…, B, 1)
        direction = (vectors * along).sum(-2, keepdim=True)
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=tiny)
    return direction
