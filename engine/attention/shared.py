"""Choices of blocks that several queries or heads share, for the paper's tables; not served.

The paper lets each head and token choose its own blocks, and measures what is lost if a chunk's tokens or a
token's heads must agree (Mohtashami & Jaggi 2023, https://arxiv.org/abs/2305.16300, section 4.1; public code
epfml/landmark-attention, `cache_selection_method`): softmax over the landmarks, the maximum over those who share,
then the k best. Where blocks stand and what else is read is as served.

Shapes use the letters of `parts.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cache import CacheLayout
from engine.attention.base import LayerGeometry, RetrievalSettings
from engine.attention.reference import ReferenceAttention
from engine.step import Span


@dataclass(frozen=True)
class Sharing:
    """Who must agree on the blocks to fetch; nobody by default.

    Attributes:
        tokens: all tokens of a chunk, for each head
        heads: all heads, for each token
    """

    tokens: bool = False
    heads: bool = False

    def agree(self, scores: Tensor) -> Tensor:
        """Scores (H, T, blocks), -inf where a query may not look, as all who share see them: the same shape."""
        shared = [axis for axis, used in ((0, self.heads), (1, self.tokens)) if used]
        if not shared:
            return scores
        weights = scores.softmax(-1).nan_to_num(0.0)  # a query that may not look anywhere has no say
        return weights.amax(shared, keepdim=True).expand_as(scores)


class SharedAttention(ReferenceAttention):
    """What is served, but each span is one chunk whose queries or heads share their choice.

    A query reads those of the chosen blocks that are far for it; one that is near for it is read anyway. No chosen
    block lies ahead of a query as long as a chunk has at most `recent_blocks` + 1 blocks, which the caller sees to.

    Args:
        sharing: who must agree
    """

    def __init__(
        self, layers: list[LayerGeometry], layout: CacheLayout, settings: RetrievalSettings, sharing: Sharing
    ) -> None:
        super().__init__(layers, layout, settings)
        self._sharing = sharing

    def _piece(self, layer: int, span: Span, groups: int) -> int:
        """A chunk is never cut: its queries may share a choice."""
        return len(span.token_ids)

    def _best(self, scores: Tensor, ends: Tensor, fetch: int) -> tuple[Tensor, Tensor]:
        """The `fetch` best of scores (H, T, blocks) for all who share, and which of them a query may fetch."""
        hidden = self._hidden(ends, scores.shape[2])  # (T, blocks)
        agreed = self._sharing.agree(scores.masked_fill(hidden, -torch.inf))
        nobody = hidden.all(0) if self._sharing.tokens else hidden
        blocks = agreed.masked_fill(nobody, -torch.inf).topk(fetch, dim=-1).indices
        return blocks, ~hidden.expand_as(scores).gather(2, blocks)
