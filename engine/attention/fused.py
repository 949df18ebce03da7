"""The same meaning as the reference on a CPU, by kernels that read blocks where they lie.

Choose, find out where blocks lie, attend: three calls for each layer, where the reference makes some sixty tensors.
A span that is tallied, stopped by a top-p or squashed by a softcap goes the reference's way.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import BlockIndex, CacheLayout, Shared, expected_largest, kernels, over_heads, share
from engine.attention.base import LayerGeometry, RetrievalSettings
from engine.attention.choosing import Choice
from engine.attention.exact import Read
from engine.attention.parts import Scoring
from engine.attention.reference import WORKING_BYTES, ReferenceAttention
from engine.attention.rows import Batch, Rows
from engine.rotation import Rotation
from engine.step import Span, Step

LANES = 16
NOTHING = -1e30
"""Logarithm of a mass that is none."""
MOST_READ = 128
"""Blocks that a query reads beside the fetched ones; for more of them matrix products are faster."""
COLD = 4
"""What a key costs that is read from anywhere in memory, beside one of many in a row."""
COPIED_SIZES = (16, 32, 64)
"""Positions of blocks whose copies the kernels read."""
FAR = 1 << 40
"""A window that hides nothing."""
Numbers = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Reach:
    """What a query reads: its own block, recent ones before it, the first ones, and so many that it chooses.

    `fetch` is None where it has no choice.
    """

    recent: int
    shared: int
    fetch: int | None

    @property
    def blocks(self) -> int:
        """Of each head."""
        return self.recent + 1 + self.shared + (self.fetch or 0)


class FusedAttention(ReferenceAttention):
    """See the module; arguments as the reference's."""

    def __init__(self, layers: list[LayerGeometry], layout: CacheLayout, settings: RetrievalSettings) -> None:
        assert self.serves(layout, settings), "it would read something else"
        super().__init__(layers, layout, settings)
        from engine.attention import attend_kernels  # loads Numba, which a server with another cache does not need

        self._kernels, self._recall, self._copies = attend_kernels, kernels("recall"), kernels("copy")
        self._keeps_scores = settings.landmark_dtype != "int4"
        self._starts: dict[int, Floats] = {}  # by layer: cosine and sine of the first position of each block
        self._scratch = torch.empty(0)
        self._warm_up()

    @staticmethod
    def serves(layout: CacheLayout, settings: RetrievalSettings) -> bool:
        """Whether the kernels know such a cache and such settings."""
        known = settings.landmarks == "moments" and settings.landmark_dtype == "int4"
        known = known or (settings.gated and not settings.estimate_rest)
        known = known and settings.landmarks_per_block == 1 and not settings.outlier_blocks
        known = known and (not settings.copied_blocks or layout.block_size in COPIED_SIZES)
        return known and layout.dtype in (torch.float32, torch.bfloat16) and layout.head_dim % LANES == 0

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step, scaling: float, softcap: float | None
    ) -> Tensor:
        output, scoring = torch.empty_like(q), self._scoring(layer, softcap)
        scaled = self._scaled(layer, q, step, scaling)
        queries = scaled.unflatten(1, (self.layout.kv_heads, -1)).transpose(0, 1)  # (H, P, G, D)
        together: dict[Reach, list[tuple[int, Span]]] = {}
        start = 0
        for span in step.spans:
            end = start + len(span.token_ids)
            if not self._serves(layer, span, scoring):
                self.store(layer, span, k[start:end], v[start:end])
                super()._attend(layer, span, scaled[start:end], scoring, step, output[start:end])
            elif end > start + 1:
                self.store(layer, span, k[start:end], v[start:end])
                self._attend_span(layer, span, queries[:, start:end], scoring, step, output[start:end])
            else:
                reach = self._reach(layer, span, span.first // self.layout.block_size)
                together.setdefault(reach, []).append((start, span))
            start = end
        for reach, found in together.items():
            self._attend_together(layer, reach, found, (queries, k, v), scoring, step, output)
        self._foresight.hint(layer, step.spans)
        return output

    def _attend_span(
        self, layer: int, span: Span, queries: Tensor, scoring: Scoring, step: Step, output: Tensor
    ) -> None:
        """Attend with queries (H, P, G, D) of one span, piece by piece."""
        positions = torch.arange(span.first, span.first + len(span.token_ids))
        piece = self._few_enough(layer, span, queries.shape[2])
        for start in range(0, len(positions), piece):
            mine = slice(start, start + piece)
            batch = self._batch(layer, (span,), queries[:, mine], positions[mine])
            attended = self._read(layer, batch, self._reach(layer, span, batch.last_block), scoring, step)
            output[mine] = attended.transpose(0, 1).flatten(1, 2)

    def _attend_together(
        self, layer: int, reach: Reach, found: list[tuple[int, Span]], rows: tuple[Tensor, Tensor, Tensor],
        scoring: Scoring, step: Step, output: Tensor,
    ) -> None:  # fmt: skip
        """Store and attend for spans of one position each, given with their rows, as many at once as the tier bears."""
        most = max(1, found[0][1].session.store.tier.window // (self.layout.kv_heads * reach.blocks))
        for begin in range(0, len(found), most):
            at, spans = zip(*found[begin : begin + most], strict=True)
            places, positions = torch.tensor(at), torch.tensor([span.first for span in spans])
            queries, k, v = rows[0][:, places], rows[1][places], rows[2][places]
            self._store_together(layer, spans, k, v, positions)
            attended = self._read(layer, self._batch(layer, spans, queries, positions), reach, scoring, step)
            output[places] = attended.transpose(0, 1).flatten(1, 2).to(output.dtype)

    def _store_together(self, layer: int, spans: tuple[Span, ...], k: Tensor, v: Tensor, positions: Tensor) -> None:
        """Write a key and a value of each span (spans, kv_heads, head_dim), and index the blocks that they fill."""
        numbers, offsets = positions // self.layout.block_size, positions % self.layout.block_size
        keys = self.layers[layer].rotation(k.float(), offsets[:, None])
        slots = torch.stack([span.session.slots(number) for span, number in zip(spans, numbers, strict=True)])
        spans[0].session.store.write(layer, slots, offsets, keys, v)
        for span in spans:
            index = span.session.indexes[layer]
            if index is not None:
                self._index(layer, span.session, index, (span.first + 1) // self.layout.block_size)

    def _batch(self, layer: int, spans: tuple[Span, ...], queries: Tensor, positions: Tensor) -> Batch:
        """Queries (H, T, G, D) that are all of one span, or one of each."""
        borders = np.array([0, len(positions)]) if len(spans) == 1 else np.arange(len(spans) + 1)
        size, distance = self.layout.block_size, self._far_distance(layer, positions)
        return Batch(queries.contiguous(), positions, size, self.layers[layer].rotation, distance, spans, borders)

    def _serves(self, layer: int, span: Span, scoring: Scoring) -> bool:
        """Whether a span asks for nothing that kernels do not know, and reads what a tier can locate at once."""
        if span.tally is not None or span.top_p is not None or scoring.softcap is not None:
            return False
        reach = self._reach(layer, span, span.session.layout.blocks(span.end) - 1)
        located = self.layout.kv_heads * reach.blocks
        return reach.recent + reach.shared <= MOST_READ and located <= span.session.store.tier.window

    def _reach(self, layer: int, span: Span, last: int) -> Reach:
        """What a query in block `last` reads."""
        recent, sinks = self._recent(layer), self.settings.sink_blocks
        far_blocks = 0 if self.layers[layer].window else max(0, last - recent)
        fetch = self._fetches(layer, span, far_blocks)
        if self._chooses(layer, span, far_blocks - sinks, fetch):
            return Reach(recent, min(far_blocks, sinks), fetch)
        return Reach(recent, min(far_blocks, sinks if fetch == 0 else far_blocks), None)

    def _few_enough(self, layer: int, span: Span, groups: int) -> int:
        """How many queries to take at once: their scores fit into working memory, their blocks into the tier's."""
        last = span.session.layout.blocks(span.end)
        reach, heads = self._reach(layer, span, last), self.layout.kv_heads
        scores = 4 * heads * groups * last if self._keeps_scores else 1
        located = span.session.store.tier.window // (heads * reach.blocks)
        return max(
            1, min(located, WORKING_BYTES // scores if reach.fetch is not None else located, len(span.token_ids))
        )

    def _read(self, layer: int, batch: Batch, reach: Reach, scoring: Scoring, step: Step) -> Tensor:
        """One softmax over near, sink and fetched blocks, and the rest: (H, T, G, D)."""
        step.report.queries += self.layout.kv_heads * len(batch.positions)
        own = batch.own.numpy()
        output = torch.zeros_like(batch.queries)
        weight = np.full(batch.queries.shape[:3], NOTHING, np.float32)
        near = own[:, None] - np.arange(reach.recent, -1, -1)  # -1 and below: there is no such block
        first = np.arange(reach.shared)
        first = np.where(first < (own - reach.recent)[:, None], first, -1)  # else it is a near one
        fixed = np.concatenate((first, near), axis=1)
        numbers = np.tile(fixed, (self.layout.kv_heads, 1, 1))  # (H, T, M)
        choice = None
        if reach.fetch is not None:
            begun = time.perf_counter()
            chosen = self._choose_blocks(layer, batch, own - reach.recent, reach.fetch, output, weight)
            fetched, copied = chosen[..., : reach.fetch], self.settings.copied_blocks
            numbers = np.concatenate((numbers, fetched), axis=2)
            choice = Choice(torch.from_numpy(chosen).clamp(min=0), torch.from_numpy(chosen >= 0), copied=copied)
            for span, end in zip(batch.spans, batch.borders[1:], strict=True):
                self._foresight.remember(layer, span.session, choice.blocks[:, end - 1, : reach.fetch])
            step.report.retrieval_seconds += time.perf_counter() - begun
        self._audit_batch(layer, batch, reach, choice, scoring, step)
        if scoring.void is not None:
            lose(scoring.void, weight, output)
        self._attend_blocks(layer, batch, numbers, reach.recent, weight, output)
        if choice is not None:
            step.report.count(int(choice.valid[..., : choice.fetched].sum()), batch.spans[0].session.store)
        return output

    def _audit_batch(
        self, layer: int, batch: Batch, reach: Reach, choice: Choice | None, scoring: Scoring, step: Step
    ) -> None:
        for place, span in enumerate(batch.spans):
            if span.audit_rate and span.samples:
                mine, rows = batch.rows(place)
                taken = None if choice is None else Choice(choice.blocks[:, mine], choice.valid[:, mine])
                self._audit(layer, rows, span, step, scoring, Read(reach.recent, reach.shared, taken))

    # -- choosing --------------------------------------------------------------------------------------------

    def _choose_blocks(
        self, layer: int, batch: Batch, ends: Numbers, fetch: int, rest: Tensor, weight: Floats
    ) -> Numbers:
        """What each head fetches, and behind it what it reads from copies: (H, T, K), -1 for nothing.

        What it reads from copies, and the estimate of what it does not read, go to rest and weight.
        """
        heads, settings, sinks = self.layout.kv_heads, self.settings, self.settings.sink_blocks
        if settings.gated and layer == 0:  # all landmarks of layer 0 tie, and the most recent win
            latest = ends[:, None] - 1 - np.arange(fetch)
            return np.tile(np.where(latest >= sinks, latest, -1), (heads, 1, 1))
        chosen = np.empty((heads, len(ends), fetch + settings.copied_blocks), np.int64)
        if not settings.gated:
            self._recall_moments(layer, batch, sinks, ends, fetch, chosen, weight, rest)
            return chosen
        for place, span in enumerate(batch.spans):
            mine, rows = batch.rows(place)
            index, found = span.session.indexes[layer], np.empty((heads, mine.stop - mine.start, fetch), np.int64)
            assert index is not None
            self._choose_trained(index, rows, sinks, ends[mine], found)
            chosen[:, mine] = found
        return chosen

    def _choose_trained(self, index: BlockIndex, rows: Rows, sinks: int, ends: Numbers, chosen: Numbers) -> None:
        """Blocks are scored by products with their landmark; see `choose` in the kernels."""
        looking = self.settings.rule.look(rows.far_queries, rows.own).flatten(1, 2).contiguous()  # (H, T * G, W)
        groups = rows.queries.shape[2]
        count, padded = extent(ends)
        if self._keeps_scores:
            self._choose_by_scores(index, looking, sinks, ends, chosen)
            return
        room = self._working_memory(len(looking), self._recall.choose_rows(groups), padded).numpy()
        arguments = (looking.numpy(), index.table, sinks, ends, chosen, room)
        share([(self._recall.shared_choose(), arguments)], len(looking), looking.shape[1] * count)

    def _choose_by_scores(self, index: BlockIndex, looking: Tensor, sinks: int, ends: Numbers, chosen: Numbers) -> None:
        """The same where landmarks are kept in fp32."""
        count, padded = extent(ends)
        scores = self._working_memory(len(looking), looking.shape[1] + 1, padded)
        products, room = scores[:, :-1].contiguous(), scores[:, -1].numpy()

        def work(some: slice) -> None:
            index.fill(looking, products[None, ..., :count], some)
            self._recall.choose(products.numpy(), sinks, ends, chosen, room, some.start, some.stop)

        over_heads(work, len(looking), products[0].numel())

    def _recall_moments(
        self, layer: int, batch: Batch, sinks: int, ends: Numbers, fetch: int, chosen: Numbers, weight: Floats,
        rest: Tensor,
    ) -> None:  # fmt: skip
        """Choose by mean and variance of a block's keys, read copies, and estimate the rest; see the kernels."""
        settings, size = self.settings, self.layout.block_size
        far = batch.far_queries.contiguous().flatten(1, 2)  # (H, T * G, D)
        indexes = [index for span in batch.spans if (index := span.session.indexes[layer]) is not None]
        tables = [index.table for index in indexes]
        borders = np.cumsum([0, *map(len, tables)])
        room = self._working_memory(len(far), self._recall.recall_rows(batch.queries.shape[2]), extent(ends)[1])
        sessions = (far.numpy(), batch.borders, np.concatenate(tables), borders, sinks, ends)
        how = (expected_largest(size), float(np.log(size)), settings.estimate_rest, settings.rest_slopes)
        estimate = (weight, rest.flatten(1, 2).numpy())
        tasks: list[tuple[Shared, tuple[Any, ...]]] = [
            (self._recall.shared_recall(), (*sessions, *how, room.numpy(), chosen, *estimate))
        ]
        copied = settings.copied_blocks
        if copied:
            copies = [index.copies_table for index in indexes]
            found = (np.concatenate(copies), np.cumsum([0, *map(len, copies)]), size, chosen, fetch)
            tasks.append((self._copies.shared_attend(), (far.numpy(), batch.borders, *found, *estimate)))
        share(tasks, len(far), far.shape[1] * (extent(ends)[0] + copied * size))

    def _working_memory(self, *shape: int) -> Tensor:
        """Room that is used again and again."""
        needed = int(np.prod(shape))
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(2 * needed)
        return self._scratch[:needed].view(shape)

    # -- reading ---------------------------------------------------------------------------------------------

    def _attend_blocks(
        self, layer: int, batch: Batch, numbers: Numbers, recent: int, weight: Floats, output: Tensor
    ) -> None:
        """Replace what is estimated in output (H, T, G, D) by attention over blocks (H, T, M), and the estimate."""
        geometry, size = self.layers[layer], self.layout.block_size
        located = batch.spans[0].session.store.locate(layer, slots_of(batch, torch.from_numpy(np.maximum(numbers, 0))))
        places = np.where(numbers >= 0, located.at.numpy(), -1)
        turns = sines(geometry.rotation, batch.positions.numpy()).swapaxes(0, 1).copy()  # (T, 2, R)
        stride, apart = (2, 1) if geometry.rotation.interleaved else (1, turns.shape[2])
        starts = self._block_starts(layer, int(batch.own.max()) + 1)
        keys, values, far = bits(located.keys), bits(located.values), batch.far_queries.contiguous().numpy()
        seen = (size, places, numbers, turns, starts, stride, apart, self.settings.gated, self.settings.bounded)
        arguments = (
            batch.queries.numpy(), far, keys, values, *seen, batch.positions.numpy(), recent, geometry.window or FAR,
            weight, output.numpy(),
        )  # fmt: skip
        work = COLD * output.shape[1] * output.shape[2] * numbers.shape[2] * size
        share([(self._kernels.shared_attend(keys.dtype), arguments)], len(output), work)

    def _block_starts(self, layer: int, blocks: int) -> Floats:
        """Cosine and sine of the first position of blocks 0, 1, … (2, at least so many, R)."""
        known = self._starts.get(layer)
        if known is None or known.shape[1] < blocks:
            rotation = self.layers[layer].rotation
            count = 1 << max(8, (blocks - 1).bit_length())
            known = sines(rotation, np.arange(count) * self.layout.block_size)
            for other, geometry in enumerate(self.layers):  # most layers turn alike
                if geometry.rotation is rotation:
                    self._starts[other] = known
        return known

    def _warm_up(self) -> None:
        """Compile now, or load what an earlier start compiled, rather than in somebody's first request."""
        self._kernels.shared_attend(bits(torch.zeros(1, 1, 1, dtype=self.layout.dtype)).dtype)
        if self._keeps_scores:
            room, blocks = np.zeros((1, 1, 5 * LANES), np.float32), np.zeros((1, 1, 1), np.int64)
            self._recall.choose(room, 0, np.zeros(1, np.int64), blocks, room[0], 0, 1)
        elif self.settings.gated:
            self._recall.shared_choose()
        else:
            self._recall.shared_recall()
        if self.settings.copied_blocks:
            self._copies.shared_attend()


def lose(void: Tensor, weight: Floats, output: Tensor) -> None:
    """Let a score (H, G) without a value take its part of an estimate: weight (H, T, G), output (H, T, G, D)."""
    before = torch.from_numpy(weight)
    after = torch.logaddexp(before, void[:, None])
    output *= (before - after).exp()[..., None]
    before.copy_(after)


def extent(ends: Numbers) -> tuple[int, int]:
    """How many blocks may be chosen from before these ends, and the room that kernels need for them."""
    count = max(0, int(ends.max()))
    return count, -(-count // LANES) * LANES + 4 * LANES


def slots_of(batch: Batch, numbers: Tensor) -> Tensor:
    """Slots of block numbers (H, T, M), each query's in its own session."""
    if len(batch.spans) == 1:
        return batch.spans[0].session.slots(numbers)
    return torch.stack([span.session.slots(numbers[:, t]) for t, span in enumerate(batch.spans)], dim=1)


def sines(rotation: Rotation, positions: Numbers) -> Floats:
    """Cosine and sine of positions (P,) in each pair of channels: (2, P, R); no pairs for a layer without positions."""
    if rotation.frequencies is None:
        return np.empty((2, len(positions), 0), np.float32)
    angles = positions[:, None] * rotation.frequencies.numpy()
    return np.stack((np.cos(angles), np.sin(angles))).astype(np.float32)


def bits(pool: Tensor) -> NDArray[Any]:
    """A cache's tensor (places, B, D) as kernels take it (places * B, D): fp32, or the bits of bf16."""
    flat = pool.flatten(0, 1)
    return flat.view(torch.uint16).numpy() if pool.dtype == torch.bfloat16 else flat.numpy()
