"""Which far blocks a query fetches, from the scores of their landmarks. Knows no session, no key and no value.

Letters in shapes: H KV heads, T queries, G query heads per KV head, N far blocks, K fetched blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """What each query and KV head fetches.

    Attributes:
        blocks: block numbers (H, T, K)
        valid: bool (H, T, K), False where there was nothing more to fetch
        copied: so many of the K, the last ones, are read from their copies
        scores: of all far blocks for each query head (H, T, G, N), those that estimate masses if the rule does; None
            if nobody looked at landmarks
        pooled: blocks that their section's mean value stands for if they are not read, bool (T, N); None for none
    """

    blocks: Tensor
    valid: Tensor
    scores: Tensor | None = None
    copied: int = 0
    pooled: Tensor | None = None

    @property
    def fetched(self) -> int:
        """So many of the K, the first ones, are read as they are."""
        return self.blocks.shape[2] - self.copied

    def unread(self, hidden: Tensor) -> Tensor:
        """Blocks that could have been fetched and were not: bool (H, T, N) from `hidden` (T, N)."""
        heads, queries, _ = self.blocks.shape
        chosen = torch.zeros((heads, queries, hidden.shape[1] + 1), dtype=torch.bool, device=hidden.device)
        chosen.scatter_(2, self.blocks.masked_fill(~self.valid, hidden.shape[1]), True)
        return ~(chosen[..., :-1] | hidden)


def shares(scores: Tensor, hidden: Tensor, near: Tensor | None = None) -> Tensor:
    """One weight for each block and KV head: the mean over its query heads *after* the softmax: (H, T, N).

    Averaging scores before the softmax lets one loud head drown the others.

    Args:
        scores: (H, T, G, N)
        hidden: bool (T, N), blocks that a query may not fetch
        near: logarithm of the exp-sum of what is read anyway (H, T, G), to count in the softmax
    """
    masked = scores.masked_fill(hidden[:, None], -torch.inf)
    if near is None:
        return masked.softmax(-1).nan_to_num(0.0).mean(2)
    return torch.cat((near[..., None], masked), dim=-1).softmax(-1)[..., 1:].mean(2)


def most_outlying(outlying: Tensor, hidden: Tensor, count: int) -> Tensor:
    """The `count` blocks of each query's past that their landmark represents worst: bool (H, T, N).

    ShadowKV (Sun et al. 2024, https://arxiv.org/abs/2410.21465) always reads such blocks. It takes them from the whole
    prompt; here they are those of each query's own past, so that the result does not depend on later text.

    Args:
        outlying: (H, N)
        hidden: bool (T, N), blocks that a query may not fetch
    """
    kinds, kind = hidden.unique(dim=0, return_inverse=True)  # many queries of a step have the same past
    masked = outlying[:, None].masked_fill(kinds, -torch.inf)  # (H, kinds, N)
    best = masked.topk(min(count, outlying.shape[1]), dim=-1)
    found = torch.zeros_like(masked, dtype=torch.bool).scatter_(2, best.indices, best.values > -torch.inf)
    return found[:, kind]


def within_top_p(weights: Tensor, read: Tensor, p: float, least: int) -> Tensor:
    """Which of the chosen blocks are fetched until `p` of the softmax is covered: bool (H, T, K).

    Twilight (Lin et al. 2025, https://arxiv.org/abs/2502.02770): a fixed number of blocks is too many for a peaked
    head and too few for a flat one.

    Args:
        weights: of the chosen blocks, largest first (H, T, K)
        read: share of what is read anyway (H, T)
        least: so many are fetched whatever they cover
    """
    before = weights.cumsum(-1) - weights + read[..., None]
    return (before < p) | (torch.arange(weights.shape[-1], device=weights.device) < least)
