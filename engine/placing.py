"""Where a model's weights lie in memory: one after the other, in large pages.

A decoded token reads all of them, and of small pages a CPU reads half as much in the same time (`cache.pages`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cache import large_pages, zeros

ALIGNED = 128
"""Bytes: a weight begins at a multiple of it."""


def settle(model: nn.Module) -> None:
    """Move a model's weights on the CPU into large pages, if the system has any; tied ones stay one.

    Each old one is let go before the next is copied, so that never more than the largest one is there twice.
    """
    weights = [weight for weight in model.parameters() if weight.device.type == "cpu"]
    if not large_pages() or not weights:
        return
    room = zeros((sum(map(taken, weights)),), torch.uint8)
    start = 0
    for weight in weights:
        place = room[start : start + weight.nbytes].view(weight.dtype).view(weight.shape)
        place.copy_(weight.data)
        weight.data = place
        start += taken(weight)


def taken(weight: Tensor) -> int:
    """Bytes of the weight and of what follows it until the next one begins."""
    return -(-weight.nbytes // ALIGNED) * ALIGNED
