"""Retrieval attention in plain torch: the meaning that every faster implementation must match.

A query at position p, in block n, reads

- *near*: its own block up to p and the `recent_blocks` before it, at their true distance;
- *sinks*: the first `sink_blocks`;
- *fetched*: of the blocks between, the `blocks_per_head` whose landmarks score highest, per KV head, and the
  `outlier_blocks`;
- *copied*: the `copied_blocks` that score highest after these, from copies in the index that take fewer bits.

All of them share one softmax, with an estimate of what is left if the settings ask for it. What a query reads
depends on its position alone, so the result is the same however the tokens were cut into steps. Keys are
stored relative to their block (`R(offset) k`): a block is seen from any distance by one rotation of the query.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from cache import BlockIndex, CacheLayout, Session, Summary, kernels, outlying, slopes
from engine.attention.base import LayerGeometry, Listed, RetrievalSettings
from engine.attention.choosing import Choice, most_outlying, shares, within_top_p
from engine.attention.counting import count_read
from engine.attention.exact import ExactAudit, Read
from engine.attention.foresight import Foresight
from engine.attention.looking import in_opened_tiles, judged
from engine.attention.parts import BlocksPart, EstimatedPart, Part, Scoring, attended, combine, dense_part, fetched_part
from engine.attention.rows import Rows
from engine.step import Span, Step

CPU = torch.device("cpu")
WORKING_BYTES = 16 << 20
"""Queries are taken in as many pieces as keep gathered blocks and scores below this; blocks that all look at, too."""


class ReferenceAttention:
    """See the module.

    Args:
        layers: one geometry per layer
        layout: shapes of the cache
        settings: what is read
        device: where queries, keys and values lie
    """

    def __init__(
        self,
        layers: list[LayerGeometry],
        layout: CacheLayout,
        settings: RetrievalSettings,
        device: torch.device = CPU,
    ) -> None:
        self.layers = layers
        self.layout = layout
        self.settings = settings
        self._audit = ExactAudit(layers, layout, settings)
        self._foresight = Foresight([self._recent(layer) for layer in range(len(layers))], settings.sink_blocks)
        for name in settings.indexing_kernels if device.type == "cpu" else ():
            kernels(name).warm_up()

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step, scaling: float, softcap: float | None
    ) -> Tensor:
        output, queries = torch.empty_like(q), self._scaled(layer, q, step, scaling)
        start = 0
        for span in step.spans:
            end = start + len(span.token_ids)
            self.store(layer, span, k[start:end], v[start:end])
            self._attend(layer, span, queries[start:end], self._scoring(layer, softcap), step, output[start:end])
            start = end
        self._foresight.hint(layer, step.spans)
        return output

    def listed(
        self, scalings: Mapping[int, float], q: Tensor, k: Tensor, v: Tensor, output: Tensor, step: Step
    ) -> Listed | None:
        """See `Attention.listed`: torch is called layer by layer."""
        return None

    def _scaled(self, layer: int, q: Tensor, step: Step, scaling: float) -> Tensor:
        """Queries (positions, query_heads, head_dim) as their products are scores: fp32."""
        return q.float() * self._scale(layer, step, scaling, q.device)

    def _scale(self, layer: int, step: Step, scaling: float, device: torch.device) -> float | Tensor:
        """What queries are multiplied with: one number for all, or one for each position (positions, 1, 1)."""
        temperature = self.layers[layer].temperature
        if temperature is None:
            return float(scaling)
        at = [torch.arange(span.first, span.first + len(span.token_ids), device=device) for span in step.spans]
        return (scaling * temperature(torch.cat(at)))[:, None, None]

    def _scoring(self, layer: int, softcap: float | None) -> Scoring:
        void = self.layers[layer].void
        return Scoring(self.settings.gated, softcap, None if void is None else void.view(self.layout.kv_heads, -1))

    # -- writing ---------------------------------------------------------------------------------------------

    def store(self, layer: int, span: Span, k: Tensor, v: Tensor) -> None:
        """Write the span's keys and values, and index the blocks that it fills."""
        session, size = span.session, self.layout.block_size
        positions = torch.arange(span.first, span.first + len(span.token_ids))  # addresses: of the CPU
        offsets = positions % size
        keys = self.layers[layer].rotation(k.float(), offsets[:, None].to(k.device))
        session.store.write(layer, session.slots(positions // size), offsets, keys, v)
        index = session.indexes[layer]
        if index is not None:
            self._index(layer, session, index, (span.first + len(span.token_ids)) // size)

    def _index(self, layer: int, session: Session, index: BlockIndex, sealed: int) -> None:
        """Summarise the sealed blocks that the index does not hold yet."""
        if sealed > index.count:
            index.add(self._summary(layer, session, index, session.slots_between(index.count, sealed)))

    def _summary(self, layer: int, session: Session, index: BlockIndex, slots: Tensor) -> Summary:
        """What stands for the next blocks, which lie in slots (blocks,)."""
        keys, values = session.store.read(layer, slots)
        keys = keys.float() if self.settings.bounded else self._to_absolute(layer, keys.float(), index.count)
        landmarks = self.settings.rule.landmarks(keys, index.count, index.shape.landmarks)
        sloped = slopes(keys, values.float()) if index.shape.slopes else None
        if sloped is not None and self.settings.judges_by_slopes:
            landmarks = self.settings.rule.beside_slope(landmarks, sloped[0])
        return Summary(
            landmarks,
            values.float().mean(2) if index.shape.values else None,
            sloped,
            outlying(keys) if index.shape.outlying else None,
            (keys, values.float()) if self.settings.copied_blocks else None,
        )

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
        """Queries (kv_heads, rows, groups, head_dim) of one session."""
        size, distance = self.layout.block_size, self._far_distance(layer, positions)
        return Rows(queries, positions, size, self.layers[layer].rotation, distance, session)

    def _far_distance(self, layer: int, positions: Tensor) -> Tensor:
        """From queries at such positions to the start of a far block as it is scored, the same shape.

        Bounded, every far block stands just before the recent ones; absolute, keys carry their true positions.
        """
        if not self.settings.bounded:
            return positions
        return (self._recent(layer) + 1) * self.layout.block_size + positions % self.layout.block_size

    def _piece(self, layer: int, span: Span, groups: int) -> int:
        """How many queries to take at once."""
        layout, reach = self.layout, self._recent(layer)
        far = 0 if self.layers[layer].window else span.session.layout.blocks(span.end)
        fetch = self._fetches(layer, span, far)
        shared = far if fetch == far else self.settings.sink_blocks
        if self._reads_all(layer, span):
            tallied = far if span.tally is not None else 0
            scores = groups * (2 * (min(far, self._together) + reach + 16) * layout.block_size + tallied)
            return max(1, WORKING_BYTES // (4 * layout.kv_heads * scores))
        copied = min(far, self.settings.copied_blocks)
        scores = groups * (
            (shared + reach + 2 * (fetch + copied) + 16) * layout.block_size + far * self._looks_per_block
        )
        gathered = 2 * (fetch + 2 * copied) * layout.block_size * layout.head_dim
        located = span.session.store.tier.window // max(1, layout.kv_heads * fetch)
        return max(1, min(located, WORKING_BYTES // (4 * layout.kv_heads * (scores + gathered))))

    @property
    def _together(self) -> int:
        """Blocks that all queries look at which are copied at once: keys, turned and not, and values, in fp32."""
        layout = self.layout
        return max(1, WORKING_BYTES // (4 * 4 * layout.kv_heads * layout.block_size * layout.head_dim))

    @property
    def _looks_per_block(self) -> int:
        """Numbers that a far block takes for each query while blocks are chosen."""
        parts = len(self.settings.rule.widths(self.layout.head_dim))
        further = (4 if self.settings.estimate_rest else 0) + (4 if self.settings.centred else 0)
        return self.settings.landmarks_per_block * 2 * parts + further

    def _fetches(self, layer: int, span: Span, far_blocks: int) -> int:
        """How many of the far blocks a query of the span may read, at most."""
        if span.blocks_per_head is None or self._reads_all(layer, span):
            return far_blocks
        return min(far_blocks, span.blocks_per_head + self.settings.outlier_blocks)

    def _reads_all(self, layer: int, span: Span) -> bool:
        return span.blocks_per_head is None or layer < self.settings.dense_layers

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
        fetch = self._fetches(layer, span, far_blocks)
        if self._chooses(layer, span, far_blocks - self.settings.sink_blocks, fetch):
            return self._attend_fetched(layer, rows, span, scoring, step, far_blocks, fetch)
        shared = min(far_blocks, self.settings.sink_blocks if fetch == 0 else far_blocks)
        self._audit(layer, rows, span, step, scoring, Read(self._recent(layer), shared))
        parts = self._shared_parts(layer, rows, scoring, span, shared)
        output, masses = combine(parts, scoring.void)
        count_read(span.tally, layer, self.settings.sink_blocks, parts, masses, None)
        return output

    def _chooses(self, layer: int, span: Span, choosable: int, fetch: int) -> bool:
        """Whether landmarks have a say: what a position reads must not depend on what else is in its step."""
        if self._reads_all(layer, span) or choosable <= 0:
            return False
        always = span.top_p is not None or self.settings.rule.replaces_mass
        looks = fetch + self.settings.copied_blocks > 0 or self.settings.estimate_rest
        return (choosable > fetch or always) and looks

    def _attend_fetched(
        self, layer: int, rows: Rows, span: Span, scoring: Scoring, step: Step, far_blocks: int, fetch: int
    ) -> Tensor:
        """As `_attend_rows`, where each head has to choose."""
        parts = self._shared_parts(layer, rows, scoring, span, self.settings.sink_blocks)
        choice = self._timed_select(layer, rows, scoring, parts, span, step, far_blocks, fetch)
        self._foresight.remember(layer, span.session, choice.blocks[:, -1, : choice.fetched])
        if self.settings.estimate_rest:
            parts.append(self._rest(layer, rows, scoring, choice))
        parts.append(self._fetched(layer, rows, scoring, choice))
        output, masses = combine(parts, scoring.void)
        step.report.count(int(choice.valid[..., : choice.fetched].sum()), rows.session.store)
        count_read(span.tally, layer, self.settings.sink_blocks, parts, masses, choice.blocks)
        return output

    def _shared_parts(self, layer: int, rows: Rows, scoring: Scoring, span: Span, count: int) -> list[Part]:
        """What all queries look at: the near blocks, and blocks 0, …, count - 1 where they are far."""
        near, size = self._near(layer, rows, scoring), self._together
        pieces = (self._shared(layer, rows, scoring, at, min(at + size, count)) for at in range(0, count, size))
        if count > size:
            return [near, attended(pieces, by_block=span.tally is not None)]
        return [near, *pieces]

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

    def _shared(self, layer: int, rows: Rows, scoring: Scoring, first: int, last: int) -> Part:
        """Blocks first, …, last - 1 for every query whose recent blocks begin after them."""
        keys, values = rows.session.store.read(layer, rows.session.slots_between(first, last))
        blocks = torch.arange(first, last, device=keys.device)
        far = blocks < (rows.own - self._recent(layer))[:, None]  # (rows, last - first)
        keys = keys.float() if self.settings.bounded else self._to_absolute(layer, keys.float(), first)
        allowed = far[..., None].expand(-1, -1, self.layout.block_size)
        return dense_part(rows.far_queries, keys, values, scoring, allowed, torch.zeros_like(far))

    def _fetched(self, layer: int, rows: Rows, scoring: Scoring, choice: Choice) -> Part:
        """The chosen blocks of each query and head."""
        blocks, valid = choice.blocks[..., : choice.fetched], choice.valid[..., : choice.fetched]
        keys, values = rows.session.store.gather(layer, rows.session.slots(blocks))
        if self.settings.bounded:
            queries = rows.far_queries
        else:
            distance = rows.positions[:, None] - blocks * self.layout.block_size  # (H, T, K)
            queries = self.layers[layer].rotation(rows.queries[:, :, None], distance[..., None])  # (H, T, K, G, D)
        part = fetched_part(queries, keys.float(), values, scoring, valid)
        if choice.copied:
            part = part.joined(self._copied(layer, rows, scoring, choice))
        if not self.settings.rule.replaces_mass:
            return part
        assert choice.scores is not None
        mass = self.settings.rule.log_mass(scoring.cap(choice.scores), self.layout.block_size)  # (H, T, G, N)
        return part.weighing(mass.gather(3, choice.blocks[:, :, None].expand(-1, -1, mass.shape[2], -1)))

    def _copied(self, layer: int, rows: Rows, scoring: Scoring, choice: Choice) -> BlocksPart:
        """The chosen blocks that are read from their copies, whose keys stand where landmarks are scored."""
        index = rows.session.indexes[layer]
        assert index is not None
        keys, values = index.copied(choice.blocks[..., choice.fetched :])
        return fetched_part(rows.far_queries, keys, values, scoring, choice.valid[..., choice.fetched :])

    def _rest(self, layer: int, rows: Rows, scoring: Scoring, choice: Choice) -> Part:
        """The far blocks that are not read, as their landmarks estimate them."""
        assert choice.scores is not None
        index = rows.session.indexes[layer]
        assert index is not None
        mass = self.settings.rule.log_mass(scoring.cap(choice.scores), self.layout.block_size)
        unread = choice.unread(self._hidden(rows.own - self._recent(layer), mass.shape[3]))
        unread_mass = mass.masked_fill(~unread[:, :, None], -torch.inf)
        return EstimatedPart(unread_mass, rows.far_queries, index, choice.pooled)

    # -- choosing --------------------------------------------------------------------------------------------

    def _timed_select(
        self,
        layer: int,
        rows: Rows,
        scoring: Scoring,
        parts: list[Part],
        span: Span,
        step: Step,
        far_blocks: int,
        fetch: int,
    ) -> Choice:
        """What each query and head fetches beside `parts`, with the seconds that it took on the step's report."""
        begun = time.perf_counter()
        choice = self._select(layer, rows, far_blocks, fetch)
        if span.top_p is not None and choice.scores is not None:
            choice = self._until_covered(layer, rows, choice, scoring, parts, span.top_p)
        step.report.retrieval_seconds += time.perf_counter() - begun
        self._audit(layer, rows, span, step, scoring, Read(self._recent(layer), self.settings.sink_blocks, choice))
        return choice

    def _select(self, layer: int, rows: Rows, far_blocks: int, fetch: int) -> Choice:
        """The `fetch` best blocks of each query and head."""
        ends = rows.own - self._recent(layer)  # what a query may fetch is [sink_blocks, end)
        if self.settings.gated and layer == 0:
            # Every landmark key of layer 0 is the same vector: all blocks tie and the most recent win.
            blocks = ends[:, None] - 1 - torch.arange(fetch, device=ends.device)
            blocks = blocks.expand(self.layout.kv_heads, -1, -1)
            return Choice(blocks.clamp(min=0), blocks >= self.settings.sink_blocks)
        index = rows.session.indexes[layer]
        assert index is not None
        taken = min(far_blocks, fetch + self.settings.copied_blocks)
        seen = judged(self.settings, index, rows, ends, far_blocks, taken)
        hidden = self._hidden(ends, far_blocks)
        wanted = seen.scores[:, :, 0] if seen.scores.shape[2] == 1 else shares(seen.scores, hidden)
        if seen.closed is not None:
            wanted = wanted.masked_fill(seen.closed, -torch.inf)
        if self.settings.outlier_blocks:
            wanted = wanted.masked_fill(self._outliers(layer, rows, hidden), torch.inf)
        inside = in_opened_tiles(self.settings, index, rows, ends, far_blocks, taken)
        if inside is not None:
            wanted = wanted.masked_fill(~inside, -torch.inf)
        blocks, valid = self._best(wanted, ends, taken)
        return Choice(blocks, valid, seen.gauges, taken - fetch, seen.pooled)

    def _outliers(self, layer: int, rows: Rows, hidden: Tensor) -> Tensor:
        """Blocks that are read whatever their landmarks say: bool (kv_heads, rows, far_blocks)."""
        index = rows.session.indexes[layer]
        assert index is not None
        return most_outlying(index.outlying(hidden.shape[1]), hidden, self.settings.outlier_blocks)

    def _until_covered(
        self, layer: int, rows: Rows, choice: Choice, scoring: Scoring, parts: list[Part], top_p: float
    ) -> Choice:
        """The choice up to `top_p` of the softmax: of all attention if landmarks estimate it, else of the landmarks."""
        assert choice.scores is not None
        hidden = self._hidden(rows.own - self._recent(layer), choice.scores.shape[3])
        near, scores = None, choice.scores
        if self.settings.rule.estimates_mass:
            scores = self.settings.rule.log_mass(scoring.cap(scores), self.layout.block_size)
            near = torch.cat([part.scores.flatten(3) for part in parts], dim=-1).logsumexp(-1)  # (H, T, G)
        whole = shares(scores, hidden, near)  # (H, T, N)
        chosen = whole.gather(2, choice.blocks.clamp(min=0)).masked_fill(~choice.valid, 0.0)  # (H, T, K)
        # `_best` need not sort, and outliers come first however little they weigh.
        order = chosen.sort(dim=-1, descending=True)
        read = 1 - whole.sum(-1) if near is not None else torch.zeros_like(whole[..., 0])
        kept = within_top_p(order.values, read, top_p, self.settings.least_blocks)
        valid = choice.valid & torch.zeros_like(kept).scatter_(2, order.indices, kept)
        return replace(choice, valid=valid)

    def _hidden(self, ends: Tensor, far_blocks: int) -> Tensor:
        """Blocks that a query may not fetch, with the first recent block of each (rows,): bool (rows, far_blocks)."""
        blocks = torch.arange(far_blocks, device=ends.device)
        return (blocks < self.settings.sink_blocks) | (blocks >= ends[:, None])

    def _best(self, scores: Tensor, ends: Tensor, fetch: int) -> tuple[Tensor, Tensor]:
        """The `fetch` best of scores (kv_heads, rows, far_blocks), and which of them are valid."""
        best = scores.masked_fill(self._hidden(ends, scores.shape[2]), -torch.inf).topk(fetch, dim=-1)
        return best.indices, best.values > -torch.inf
