"""What a landmark rule is.

Every score comes from inner products: a block becomes a few vectors per KV head, a query becomes as many, and of their
products a rule makes the block's score. So one index serves all rules, and looking is a few matrix products.

Letters in shapes: H KV heads, T queries, G query heads per KV head, N blocks, M landmarks of a block, B positions of a
block, D channels of a key, W channels of a landmark, P products of a query with a landmark.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from cache.summary import Summary
from cache.usual import Usual


class LandmarkRule(ABC):
    """How a block is summarised and how a query looks at summaries.

    A rule writes `widths`, `summarise` and `encode`; one of several products overrides `judge`; one that looks at where
    blocks stand, or that cuts a block in its own way, overrides `landmarks` or `look`.
    """

    name: ClassVar[str]
    estimates_mass: ClassVar[bool] = False
    """It can estimate log(mean of exp(q · key)) of a block, and so stand in for keys that are not read."""
    replaces_mass: ClassVar[bool] = False
    """A block that is read gets the attention that its landmark says, not its keys."""
    sees_content: ClassVar[bool] = True
    """The choice depends on what stands in a block."""
    knows_slopes: ClassVar[bool] = False
    """What a block's slope says of its keys makes its only landmark sharper; see `beside_slope`."""
    gathers: ClassVar[bool] = False
    """From landmarks, mean values and slopes of blocks follow those of sections; see `gather`."""
    rounds: ClassVar[bool] = True
    """Its landmarks may be kept in 4 bits."""

    @abstractmethod
    def widths(self, head_dim: int) -> tuple[int, ...]:
        """Channels of a landmark, in parts: each makes a product of its own with a query. W is their sum."""

    @abstractmethod
    def summarise(self, keys: Tensor) -> Tensor:
        """keys (…, B, D) -> one landmark (…, W)."""

    @abstractmethod
    def encode(self, queries: Tensor) -> Tensor:
        """queries (…, D) -> vectors (…, W), in the same parts as a landmark."""

    def landmarks(self, keys: Tensor, first: int, count: int) -> Tensor:
        """Landmarks (H, N, count, W) of sealed blocks: one for each of `count` equal parts.

        Args:
            keys: (H, N, B, D) fp32
            first: number of the first block in its session
        """
        return self.summarise(keys.unflatten(2, (count, -1)))

    def beside_slope(self, landmarks: Tensor, along: Tensor) -> Tensor:
        """Landmarks (H, N, 1, W) where how keys scatter along their slope (H, N, D) is told by it; if `knows_slopes`.

        Then `judge` gets the products with it as the last ones.
        """
        raise NotImplementedError

    def pair_widths(self, head_dim: int) -> tuple[int, ...]:
        """Channels of the landmark of a pair of blocks, in parts; only if the rule `gathers`."""
        return ()

    def usual(self, blocks: Summary) -> Usual:
        """What the first blocks of a session tell of all others; as `gather`."""
        raise NotImplementedError

    def gather(self, blocks: Summary, usual: Usual) -> tuple[Summary, Summary]:
        """What stands for pairs, and for sections, from what stands for their blocks.

        Each block has one landmark, a mean value and slopes; a section has no landmark. Only if the rule `gathers`.
        """
        raise NotImplementedError

    def look_at_pairs(self, queries: Tensor, usual: Usual) -> Tensor:
        """Vectors (H, Q, W of a pair) of queries (H, Q, D), as `encode`."""
        raise NotImplementedError

    def look_at_profile(self, queries: Tensor) -> Tensor:
        """Vectors (…, D) of queries (…, D), as `encode`."""
        raise NotImplementedError

    def by_profile(self, products: Tensor, told: Tensor, largest: Tensor) -> Tensor:
        """Products (H, Q, N, P) of blocks where what is usual takes the place of what only blocks themselves know.

        Args:
            told: products of the queries, by `look_at_profile`, with the usual profile (H, Q)
            largest: the largest channel of each block's landmark, by part (H, N, P of a landmark)
        """
        raise NotImplementedError

    def pairs_by_profile(self, products: Tensor, told: Tensor, largest: Tensor) -> Tensor:
        """The same of pairs, as `judge` takes it, of their products with queries by `look_at_pairs`."""
        raise NotImplementedError

    def look(self, queries: Tensor, own: Tensor) -> Tensor:
        """Vectors (H, T, G, W) of queries (H, T, G, D) that stand in blocks `own` (T,)."""
        return self.encode(queries)

    def judge(self, products: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """What products (…, P) say of landmarks that stand for `size` keys each.

        Returns:
            The score by which blocks are chosen (…), and, if the rule `estimates_mass`, log(mean of exp(q · key)) (…)
        """
        score = products.sum(-1) if products.shape[-1] > 1 else products.squeeze(-1)
        return score, score

    def join(self, scores: Tensor) -> Tensor:
        """One score per block (…, N) from those of its landmarks (…, N, M): its best part's, or all parts' mass."""
        if scores.shape[-1] == 1:
            return scores.squeeze(-1)
        if not self.estimates_mass:
            return scores.amax(-1)
        return scores.logsumexp(-1) - torch.tensor(float(scores.shape[-1])).log()

    def log_mass(self, scores: Tensor, block_size: int) -> Tensor:
        """log Σ exp(q · key) of a block, from its joined log(mean of exp), the same shape; only if `estimates_mass`."""
        return scores + torch.tensor(float(block_size)).log()
