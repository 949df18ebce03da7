"""Retrieval attention in plain torch: the meaning that every faster implementation must match.

A query at position p, in block n, reads

- *near*: its own block up to p and the `recent_blocks` before it, at their true distance;
- *sinks*: the first `sink_blocks`;
- *fetched*: of the blocks between, the `blocks_per_head` whose landmarks score highest, per KV head.

All three share one softmax. What a query reads depends on its position alone, so the result is the same
however the tokens were cut into steps. Keys are stored relative to their block (`R(offset) k`): a block is
seen from any distance by one rotation of the query.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cache import CacheLayout, LandmarkIndex, Session
from engine.attention.base import LayerGeometry, RetrievalSettings
from engine.attention.parts import Part, Scoring, combine, dense_part, fetched_part
from engine.rotation import Rotation
from engine.step import Span, Step

WORKING_BYTES = 16 << 20
"""Queries are taken in as many pieces as keep their gathered blocks and scores below this."""


@dataclass(frozen=True)
class Rows:
    """Consecutive queries of one session in one layer.

    Attributes:
        queries: (kv_heads, rows, groups, head_dim) fp32, scaled and unrotated
        positions: (rows,)
        rotation: the layer's
        far_distance: from each query to the start of a far block as it is scored (rows,)
    """

    session: Session
    queries: Tensor
    positions: Tensor
    block_size: int
    rotation: Rotation
    far_distance: Tensor

    @property
    def own(self) -> Tensor:
        """Block of each query (rows,)."""
        return self.positions // self.block_size

    @property
    def first_block(self) -> int:
        return int(self.positions[0]) // self.block_size

    @property
    def last_block(self) -> int:
        return int(self.positions[-1]) // self.block_size

    @cached_property
    def far_queries(self) -> Tensor:
        """Queries as far blocks see them, rotated once for scanning and reading: (kv_heads, rows, groups, head_dim)."""
        return self.rotation(self.queries, self.far_distance[:, None])


class ReferenceAttention:
    """See the module.

    Args:
        layers: one geometry per layer
        layout: shapes of the cache
        settings: what is read
    """

    gathers = True
    """Copies what each query fetched into working memory."""

    def __init__(self, layers: list[LayerGeometry], layout: CacheLayout, settings: RetrievalSettings) -> None:
        self.layers = layers
        self.layout = layout
        self.settings = settings

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step, scaling: float, softcap: float | None
    ) -> Tensor:
        output = torch.empty_like(q)
        start = 0
        for span in step.spans:
            end = start + len(span.token_ids)
            self.store(layer, span, k[start:end], v[start:end])
            self._attend(
                layer,
                span,
                q[start:end].float() * scaling,
                Scoring(self.settings.gated, softcap),
                step,
                output[start:end],
            )
            start = end
        return output

    # -- writing ---------------------------------------------------------------------------------------------

    def store(self, layer: int, span: Span, k: Tensor, v: Tensor) -> None:
        """Write the span's keys and values, and index the blocks that it fills."""
        session, size = span.session, self.layout.block_size
        positions = torch.arange(span.first, span.first + len(span.token_ids), device=k.device)
        offsets = positions % size
        keys = self.layers[layer].rotation(k.float(), offsets[:, None])
        session.store.write(layer, session.slots(positions // size), offsets, keys, v)
        index = session.indexes[layer]
        if index is not None:
            self._index(layer, session, index, (span.first + len(span.token_ids)) // size)

    def _index(self, layer: int, session: Session, index: LandmarkIndex, sealed: int) -> None:
        """Summarise the sealed blocks that the index does not hold yet."""
        if sealed > index.count:
            keys, _ = session.store.read(layer, session.slots_between(index.count, sealed))
            keys = keys.float()
            if not self.settings.bounded:
                keys = self._to_absolute(layer, keys, index.count)
            index.add(self.settings.rule.summarise(keys))

    def _to_absolute(self, layer: int, keys: Tensor, first: int) -> Tensor:
        """Keys (kv_heads, blocks, block_size, head_dim) of blocks first, first + 1, … rotated to true positions."""
        starts = torch.arange(first, first + keys.shape[1], device=keys.device) * self.layout.block_size
        return self.layers[layer].rotation(keys, starts[:, None])

    # -- reading ---------------------------------------------------------------------------------------------

    def _attend(self, layer: int, span: Span, q: Tensor, scoring: Scoring, step: Step, output: Tensor) -> None:
        """Attend piece by piece: q and output (positions, query_heads, head_dim)."""
        grouped = q.unflatten(1, (self.layout.kv_heads, -1)).transpose(0, 1)  # (H, T, G, D)
        positions = torch.arange(span.first, span.first + len(span.token_ids), device=q.device)
        piece = self._piece(layer, span, grouped.shape[2])
        for start in range(0, len(positions), piece):
            queries, taken = grouped[:, start : start + piece], positions[start : start + piece]
            rows = self._rows(layer, span.session, queries, taken)
            attended = self._attend_rows(layer, rows, span, scoring, step)  # (H, rows, G, D)
            output[start : start + piece] = attended.transpose(0, 1).flatten(1, 2)

    def _rows(self, layer: int, session: Session, queries: Tensor, positions: Tensor) -> Rows:
        """Bounded, every far block stands just before the recent ones; absolute, keys carry their true positions."""
        size, distance = self.layout.block_size, positions
        if self.settings.bounded:
            distance = (self._recent(layer) + 1) * size + positions % size
        return Rows(session, queries, positions, size, self.layers[layer].rotation, distance)

    def _piece(self, layer: int, span: Span, groups: int) -> int:
        """How many queries to take at once."""
        layout, reach = self.layout, self._recent(layer)
        far = 0 if self.layers[layer].window else span.session.layout.blocks(span.end)
        shared = far if span.blocks_per_head is None else self.settings.sink_blocks
        fetched = min(span.blocks_per_head or 0, far)
        scores = groups * ((shared + reach + 2 * fetched + 16) * layout.block_size + far)
        gathered = 2 * fetched * layout.block_size * layout.head_dim if self.gathers else 0
        return max(1, WORKING_BYTES // (4 * layout.kv_heads * (scores + gathered)))

    def _recent(self, layer: int) -> int:
        """Blocks before a query's own that this layer reads at their true distance."""
        window = self.layers[layer].window
        if window is None:
            return self.settings.recent_blocks
        return -(-(window - 1) // self.layout.block_size)

    def _attend_rows(self, layer: int, rows: Rows, span: Span, scoring: Scoring, step: Step) -> Tensor:
        """One softmax over near, sink and fetched blocks: (kv_heads, rows, groups, head_dim)."""
        step.report.queries += self.layout.kv_heads * len(rows.positions)
        far_blocks = 0 if self.layers[layer].window else max(0, rows.last_block - self._recent(layer))
        fetch = far_blocks if span.blocks_per_head is None else span.blocks_per_head
        if far_blocks - self.settings.sink_blocks > fetch > 0:
            return self._attend_fetched(layer, rows, span, scoring, step, far_blocks, fetch)
        shared = min(far_blocks, self.settings.sink_blocks if fetch == 0 else far_blocks)
        output, masses = combine(self._shared_parts(layer, rows, scoring, shared))
        self._count_read(span, masses, None)
        return output

    def _attend_fetched(
        self, layer: int, rows: Rows, span: Span, scoring: Scoring, step: Step, far_blocks: int, fetch: int
    ) -> Tensor:
        """As `_attend_rows`, where each head has to choose."""
        parts = self._shared_parts(layer, rows, scoring, self.settings.sink_blocks)
        blocks, valid = self._timed_select(layer, rows, step, far_blocks, fetch)
        output, masses = combine([*parts, self._fetched(layer, rows, scoring, blocks, valid)])
        self._count_selected(rows, step, valid)
        self._count_read(span, masses, blocks)
        return output

    def _shared_parts(self, layer: int, rows: Rows, scoring: Scoring, count: int) -> list[Part]:
        """What all queries look at: the near blocks, and blocks 0, …, count - 1 where they are far."""
        near = self._near(layer, rows, scoring)
        return [near, self._shared(layer, rows, scoring, count)] if count else [near]

    def _near(self, layer: int, rows: Rows, scoring: Scoring) -> Part:
        """The open block and the recent ones, causally and within the layer's window."""
        size, reach, rotation = self.layout.block_size, self._recent(layer), self.layers[layer].rotation
        first, last = max(0, rows.first_block - reach), rows.last_block + 1
        keys, values = rows.session.store.read(layer, rows.session.slots_between(first, last))
        starts = torch.arange(last - first, device=keys.device) * size  # relative to the first block
        queries = rotation(rows.queries, (rows.positions - first * size)[:, None])
        at = (first * size + starts)[:, None] + torch.arange(size, device=keys.device)  # (blocks, block_size)
        distance = rows.positions[:, None, None] - at
        age = rows.own[:, None] - torch.arange(first, last, device=keys.device)
        allowed = (distance >= 0) & (age <= reach)[..., None]
        window = self.layers[layer].window
        if window is not None:
            allowed &= distance < window
        return dense_part(queries, rotation(keys.float(), starts[:, None]), values, scoring, allowed, age == 0)

    def _shared(self, layer: int, rows: Rows, scoring: Scoring, count: int) -> Part:
        """Blocks 0, …, count - 1 for every query whose recent blocks begin after them."""
        keys, values = rows.session.store.read(layer, rows.session.slots_between(0, count))
        blocks = torch.arange(count, device=keys.device)
        far = blocks < (rows.own - self._recent(layer))[:, None]  # (rows, count)
        keys = keys.float() if self.settings.bounded else self._to_absolute(layer, keys.float(), 0)
        allowed = far[..., None].expand(-1, -1, self.layout.block_size)
        return dense_part(rows.far_queries, keys, values, scoring, allowed, torch.zeros_like(far))

    def _fetched(self, layer: int, rows: Rows, scoring: Scoring, blocks: Tensor, valid: Tensor) -> Part:
        """The chosen blocks (kv_heads, rows, fetch) of each query and head."""
        keys, values = rows.session.store.gather(layer, rows.session.slots(blocks))
        if self.settings.bounded:
            queries = rows.far_queries
        else:
            distance = rows.positions[:, None] - blocks * self.layout.block_size  # (H, T, K)
            queries = self.layers[layer].rotation(rows.queries[:, :, None], distance[..., None])  # (H, T, K, G, D)
        return fetched_part(queries, keys.float(), values, scoring, valid)

    # -- choosing --------------------------------------------------------------------------------------------

    def _timed_select(self, layer: int, rows: Rows, step: Step, far_blocks: int, fetch: int) -> tuple[Tensor, Tensor]:
        """`_select`, with its seconds on the step's report."""
        begun = time.perf_counter()
        chosen = self._select(layer, rows, far_blocks, fetch)
        step.report.retrieval_seconds += time.perf_counter() - begun
        return chosen

    def _select(self, layer: int, rows: Rows, far_blocks: int, fetch: int) -> tuple[Tensor, Tensor]:
        """Blocks (kv_heads, rows, fetch) that each query's head fetches, and which of them are valid."""
        ends = rows.own - self._recent(layer)  # what a query may fetch is [sink_blocks, end)
        if self.settings.gated and layer == 0:
            # Every landmark key of layer 0 is the same vector: all blocks tie and the most recent win.
            blocks = ends[:, None] - 1 - torch.arange(fetch, device=ends.device)
            blocks = blocks.expand(self.layout.kv_heads, -1, -1)
            return blocks.clamp(min=0), blocks >= self.settings.sink_blocks
        scores = self._landmark_scores(layer, rows, far_blocks)  # (H, T, G, far_blocks)
        if scores.shape[2] == 1:
            return self._best(scores[:, :, 0], ends, fetch)
        return self._best(self._aggregate(scores, self._hidden(ends, far_blocks)), ends, fetch)

    def _hidden(self, ends: Tensor, far_blocks: int) -> Tensor:
        """Blocks that a query may not fetch: bool (rows, far_blocks)."""
        blocks = torch.arange(far_blocks, device=ends.device)
        return (blocks < self.settings.sink_blocks) | (blocks >= ends[:, None])

    def _best(self, scores: Tensor, ends: Tensor, fetch: int) -> tuple[Tensor, Tensor]:
        """The `fetch` best of scores (kv_heads, rows, far_blocks), and which of them are valid."""
        best = scores.masked_fill(self._hidden(ends, scores.shape[2]), -torch.inf).topk(fetch, dim=-1)
        return best.indices, best.values > -torch.inf

    def _landmark_scores(self, layer: int, rows: Rows, far_blocks: int) -> Tensor:
        """(kv_heads, rows, groups, far_blocks)."""
        index = rows.session.indexes[layer]
        assert index is not None
        encoded = self.settings.rule.encode(rows.far_queries).flatten(1, 2)  # (H, T * G, width)
        return index.scores(encoded, far_blocks).unflatten(1, rows.queries.shape[1:3])

    def _aggregate(self, scores: Tensor, hidden: Tensor) -> Tensor:
        """One score per KV head: the mean over its query heads *after* the softmax: (H, T, far_blocks)."""
        return scores.masked_fill_(hidden[:, None], -torch.inf).softmax(-1).nan_to_num_(0.0).mean(2)

    # -- measuring -------------------------------------------------------------------------------------------

    def _count_selected(self, rows: Rows, step: Step, valid: Tensor) -> None:
        """The step's metrics."""
        report, tier, fetched = step.report, rows.session.store.tier.name, int(valid.sum())
        report.blocks_selected += fetched
        report.hits[tier] = report.hits.get(tier, 0) + fetched

    def _count_read(self, span: Span, masses: list[Tensor], fetched: Tensor | None) -> None:
        """What the span's queries read, if somebody wants to know.

        Args:
            masses: attention by block (kv_heads, rows, blocks) of the near part, then the shared and fetched ones
            fetched: block numbers of the last part, if it is one of fetched blocks
        """
        if span.tally is None:
            return
        near, *rest = masses
        span.tally.local += float(near.sum())
        if fetched is not None:
            span.tally.add(fetched.flatten().tolist(), rest.pop().flatten().tolist())
        for mass in rest:
            shared, sinks = mass.sum((0, 1)).tolist(), self.settings.sink_blocks
            span.tally.sinks += sum(shared[:sinks])
            span.tally.add(list(range(sinks, len(shared))), shared[sinks:])
