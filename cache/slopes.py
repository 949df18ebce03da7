"""How a block's mean value turns with the query that reads it.

Attention inside a block is a softmax, and to first order in the query its mean value is

    mean value + Cov(value, key) q

(the derivative of a softmax average at q = 0). Of the covariance the part with the largest singular value is kept: two
vectors for each block.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 2
"""Of the power iteration that finds that part; further ones do not make the estimate better."""


def slopes(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The largest part of Cov(value, key), as the outer product of two vectors.

    Args:
        keys, values: (…, B, D) fp32

    Returns:
        What a query is multiplied with, and which way the mean value goes: (…, D) each, the second one of length 1
    """
    keys, values = keys - keys.mean(-2, keepdim=True), values - values.mean(-2, keepdim=True)
    farthest = keys.square().sum(-1, keepdim=True).argmax(-2, keepdim=True)  # (…, 1, 1), where the search starts
    key = keys.gather(-2, farthest.expand(*farthest.shape[:-1], keys.shape[-1]))  # (…, 1, D)
    for _ in range(ROUNDS):  # sums: for products of few matrices torch calls up threads that take longer than the work
        turn = (values * (keys * key).sum(-1, keepdim=True)).sum(-2, keepdim=True)
        turn = turn / turn.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(turn.dtype).tiny)
        key = (keys * (values * turn).sum(-1, keepdim=True)).mean(-2, keepdim=True)
    return key.squeeze(-2), turn.squeeze(-2)
