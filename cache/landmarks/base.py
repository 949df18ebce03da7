"""What a landmark rule is.

Every score is an inner product: a block becomes a few vectors per KV head, a query becomes one, and their dot products,
joined, are the block's score. So one index serves all rules, and scoring is one matrix product.

Letters in shapes: H KV heads, T queries, G query heads per KV head, N blocks, M landmarks of a block, B positions of a
block, D channels of a key, W channels of a landmark.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class LandmarkRule(ABC):
    """How a block is summarised and how a query looks at summaries.

    A rule writes `summarise` and `encode`; one that looks at where blocks stand, or that cuts a block in its own way,
    overrides `landmarks` or `look`.
    """

    name: ClassVar[str]
    estimates_mass: ClassVar[bool] = False
    """It can estimate log(mean of exp(q · key)) of a block, and so stand in for keys that are not read."""
    gauges_apart: ClassVar[bool] = False
    """That estimate is not the score by which it chooses, but `gauge`'s."""
    replaces_mass: ClassVar[bool] = False
    """A block that is read gets the attention that its landmark says, not its keys."""
    sees_content: ClassVar[bool] = True
    """The choice depends on what stands in a block."""

    @abstractmethod
    def width(self, head_dim: int) -> int:
        """Channels of a landmark."""

    @abstractmethod
    def summarise(self, keys: Tensor) -> Tensor:
        """keys (…, B, D) -> one landmark (…, W)."""

    @abstractmethod
    def encode(self, queries: Tensor) -> Tensor:
        """queries (…, D) -> vectors (…, W) whose dot product with a landmark is its score."""

    def landmarks(self, keys: Tensor, first: int, count: int) -> Tensor:
        """Landmarks (H, N, count, W) of sealed blocks: one for each of `count` equal parts.

        Args:
            keys: (H, N, B, D) fp32
            first: number of the first block in its session
        """
        return self.summarise(keys.unflatten(2, (count, -1)))

    def look(self, queries: Tensor, own: Tensor) -> Tensor:
        """Vectors (H, T, G, W) of queries (H, T, G, D) that stand in blocks `own` (T,)."""
        return self.encode(queries)

    def gauge(self, queries: Tensor, own: Tensor) -> Tensor:
        """As `look`, for scores that estimate masses."""
        return self.look(queries, own)

    def join(self, scores: Tensor) -> Tensor:
        """One score per block (…, N) from those of its landmarks (…, N, M): its best part's, or all parts' mass."""
        if scores.shape[-1] == 1:
            return scores.squeeze(-1)
        if not self.estimates_mass:
            return scores.amax(-1)
        return scores.logsumexp(-1) - torch.tensor(float(scores.shape[-1])).log()

    def log_mass(self, scores: Tensor, block_size: int) -> Tensor:
        """log Σ exp(q · key) of a block, from joined scores of `gauge`, the same shape; only if `estimates_mass`."""
        return scores + torch.tensor(float(block_size)).log()
