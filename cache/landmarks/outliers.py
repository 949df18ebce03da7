"""ShadowKV's outliers (Sun et al. 2024, https://arxiv.org/abs/2410.21465): blocks that no landmark represents."""

from __future__ import annotations

import torch
from torch import Tensor


def outlying(keys: Tensor) -> Tensor:
    """How badly a mean represents its block: 1 - the smallest cosine between a key and the mean.

    Args:
        keys: (…, block_size, head_dim)

    Returns:
        (…,), from 0 (all keys point the same way) to 2
    """
    keys = keys.float()
    return 1 - torch.cosine_similarity(keys, keys.mean(-2, keepdim=True), dim=-1).amin(-1)
