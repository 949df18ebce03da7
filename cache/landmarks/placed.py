"""Choices that look at where blocks stand and not at what is in them, to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from cache.landmarks.base import LandmarkRule


class Placed(LandmarkRule):
    """Scores that depend on the numbers of the query's block and of the block alone."""

    sees_content = False
    rounds = False

    def summarise(self, keys: Tensor) -> Tensor:
        raise NotImplementedError("a placed rule has no landmark without a place")

    def encode(self, queries: Tensor) -> Tensor:
        raise NotImplementedError("a placed rule looks at places, not at queries")

    def features(self, blocks: Tensor) -> Tensor:
        """What a block number (…,) puts into its landmark: (…, W)."""
        raise NotImplementedError

    def seen(self, own: Tensor) -> Tensor:
        """What a query's block number (…,) looks for: (…, W)."""
        raise NotImplementedError

    def landmarks(self, keys: Tensor, first: int, count: int) -> Tensor:
        blocks = torch.arange(first, first + keys.shape[1], device=keys.device)
        return self.features(blocks)[None, :, None].expand(keys.shape[0], -1, count, -1)

    def look(self, queries: Tensor, own: Tensor) -> Tensor:
        return self.seen(own)[None, :, None].expand(*queries.shape[:3], -1)
