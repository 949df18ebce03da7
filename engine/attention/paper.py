"""The paper's own cutting, for its tables and for conformance with its code; not served.

Differs from the reference in what is local and where fetched blocks stand (Mohtashami & Jaggi 2023,
https://arxiv.org/abs/2305.16300, section 3.2 and appendix; public code epfml/landmark-attention):

- local is the whole prefill chunk, or the open block while decoding; earlier blocks of the chunk are reached
  through their landmarks without choosing;
- everything before is reached by top-k only, at *stingy* positions: with N blocks before the local section
  and P = (N - (k + 1)) * block_size, block slots are counted from P. To be scored, the latest k landmarks
  stand in slots 1 … k and all older ones in slot 0; to be read, the fetched blocks stand by age in slots
  0 … k - 1, one slot later if they are among the latest k;
- a chunk's tokens may share one choice per head, and a token's heads one choice (`shared.py`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cache import CacheLayout
from engine.attention.base import LayerGeometry, RetrievalSettings
from engine.attention.parts import Part, Scoring, combine, dense_part, fetched_part
from engine.attention.reference import ReferenceAttention
from engine.attention.rows import Rows
from engine.attention.shared import Sharing
from engine.step import Span, Step


class PaperAttention(ReferenceAttention):
    """Each span is one chunk or one decoded position, beginning at a block's start when it is a chunk.

    Args:
        shared_selection: one choice per head for the whole chunk instead of one per position
        shared_heads: one choice for all heads
    """

    def __init__(
        self,
        layers: list[LayerGeometry],
        layout: CacheLayout,
        settings: RetrievalSettings,
        *,
        shared_selection: bool,
        shared_heads: bool = False,
    ) -> None:
        super().__init__(layers, layout, replace(settings, positions="bounded", sink_blocks=0))
        self._sharing = Sharing(tokens=shared_selection, heads=shared_heads)

    def _piece(self, layer: int, span: Span, groups: int) -> int:
        """A chunk is never cut: its queries may share a choice."""
        return len(span.token_ids)

    def _attend_rows(self, layer: int, rows: Rows, span: Span, scoring: Scoring, step: Step) -> Tensor:
        before = rows.first_block  # blocks before the local section
        parts = [self._local(layer, rows, scoring)]
        fetch = min(self.settings.blocks_per_head, before)
        if fetch:
            blocks = self._choose(layer, rows, before, fetch)
            parts.append(self._read(layer, rows, scoring, blocks, before))
        output, _ = combine(parts, scoring.void)
        return output

    def _local(self, layer: int, rows: Rows, scoring: Scoring) -> Part:
        """The local section: everything from the first query's block on."""
        size, rotation = self.layout.block_size, self.layers[layer].rotation
        first, last = rows.first_block, rows.last_block + 1
        keys, values = rows.session.store.read(layer, rows.session.slots_between(first, last))
        starts = torch.arange(last - first) * size
        at = (first * size + starts)[:, None] + torch.arange(size)  # (blocks, block_size)
        allowed = at <= rows.positions[:, None, None]
        own = rows.own[:, None] == torch.arange(first, last)
        queries = rotation(rows.queries, (rows.positions - first * size)[:, None])
        return dense_part(queries, rotation(keys.float(), starts[:, None]), values, scoring, allowed, own)

    def _choose(self, layer: int, rows: Rows, before: int, fetch: int) -> Tensor:
        """Blocks (kv_heads, rows, fetch), oldest first."""
        assert rows.queries.shape[2] == 1, "the paper's models have one query head per KV head"
        late = [self._late_scores(layer, rows, before - fetch + i, slot=i + 1) for i in range(fetch)]
        scores = torch.cat([self._old_scores(layer, rows, before - fetch), *late], dim=-1)  # (H, T, before)
        return self._sharing.agree(scores).topk(fetch, dim=-1).indices.sort(-1).values

    def _seen_from(self, layer: int, rows: Rows, slot: int) -> Tensor:
        """Queries (kv_heads, rows, head_dim) as a block in a stingy slot sees them."""
        distance = rows.positions - self._slot_start(rows, slot)
        return self.layers[layer].rotation(rows.queries, distance[:, None]).flatten(1, 2)

    def _slot_start(self, rows: Rows, slot: int) -> int:
        before = rows.first_block
        return (before - (min(self.settings.blocks_per_head, before) + 1) + slot) * self.layout.block_size

    def _old_scores(self, layer: int, rows: Rows, count: int) -> Tensor:
        """Landmark scores of the oldest `count` blocks, which share slot 0: (H, T, count)."""
        index = rows.session.indexes[layer]
        assert index is not None
        return index.products(self._seen_from(layer, rows, 0), count).squeeze(-1)

    def _late_scores(self, layer: int, rows: Rows, block: int, slot: int) -> Tensor:
        """Landmark score of one of the latest blocks in its own slot: (H, T, 1)."""
        keys, _ = rows.session.store.read(layer, rows.session.slots_between(block, block + 1))  # (H, 1, B, D)
        return self._seen_from(layer, rows, slot) @ keys[:, :, -1].float().mT

    def _read(self, layer: int, rows: Rows, scoring: Scoring, blocks: Tensor, before: int) -> Part:
        """Fetched blocks (kv_heads, rows, fetch) in their stingy slots."""
        fetch, size = blocks.shape[-1], self.layout.block_size
        slot = torch.arange(fetch) + (blocks >= before - fetch).long()
        distance = rows.positions[:, None] - (self._slot_start(rows, 0) + slot * size)  # (H, T, K)
        queries = self.layers[layer].rotation(rows.queries[:, :, None], distance[..., None])  # (H, T, K, G, D)
        keys, values = rows.session.store.gather(layer, rows.session.slots(blocks))
        return fetched_part(queries, keys.float(), values, scoring, torch.ones_like(blocks, dtype=torch.bool))
