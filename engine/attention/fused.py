"""The same meaning as the reference on a CPU, by kernels that read blocks where they lie.

Choose, find out where blocks lie, attend: three calls for each layer, where the reference makes some sixty tensors.
A span that is tallied, stopped by a top-p or squashed by a softcap goes the reference's way.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import BlockIndex, CacheLayout, expected_largest, kernels, over_heads
from engine.attention.base import LayerGeometry, RetrievalSettings
from engine.attention.choosing import Choice
from engine.attention.exact import Read
from engine.attention.parts import Scoring
from engine.attention.reference import WORKING_BYTES, ReferenceAttention
from engine.attention.rows import Rows
from engine.rotation import Rotation
from engine.step import Span, Step

LANES = 16
MOST_READ = 128
"""Blocks that a query reads beside the fetched ones; for more of them matrix products are faster."""
COLD = 4
"""What a key costs that is read from anywhere in memory, beside one of many in a row."""
FAR = 1 << 40
"""A window that hides nothing."""
Numbers = NDArray[np.int64]
Floats = NDArray[np.float32]


class FusedAttention(ReferenceAttention):
    """See the module; arguments as the reference's."""

    def __init__(self, layers: list[LayerGeometry], layout: CacheLayout, settings: RetrievalSettings) -> None:
        assert self.serves(layout, settings), "it would read something else"
        super().__init__(layers, layout, settings)
        from engine.attention import attend_kernels  # loads Numba, which a server with another cache does not need

        self._kernels, self._recall = attend_kernels, kernels("recall")
        self._starts: dict[int, Floats] = {}  # by layer: cosine and sine of the first position of each block
        self._scratch = torch.empty(0)
        self._warm_up()

    @staticmethod
    def serves(layout: CacheLayout, settings: RetrievalSettings) -> bool:
        """Whether the kernels know such a cache and such settings."""
        known = settings.landmarks == "moments" and settings.landmark_dtype == "int4"
        known = known or (settings.gated and not settings.estimate_rest)
        known = known and settings.landmarks_per_block == 1 and not settings.outlier_blocks
        return known and layout.dtype in (torch.float32, torch.bfloat16) and layout.head_dim % LANES == 0

    def _attend(self, layer: int, span: Span, q: Tensor, scoring: Scoring, step: Step, output: Tensor) -> None:
        if not self._serves(layer, span, scoring):
            super()._attend(layer, span, q, scoring, step, output)
            return
        grouped = q.unflatten(1, (self.layout.kv_heads, -1)).transpose(0, 1)  # (H, T, G, D)
        positions = torch.arange(span.first, span.first + len(span.token_ids))
        piece = self._few_enough(layer, span, grouped.shape[2])
        for start in range(0, len(positions), piece):
            queries = grouped[:, start : start + piece].contiguous()
            rows = self._rows(layer, span.session, queries, positions[start : start + piece])
            attended = self._read(layer, rows, span, scoring, step)  # (H, T, G, D)
            output[start : start + piece] = attended.transpose(0, 1).flatten(1, 2)

    def _serves(self, layer: int, span: Span, scoring: Scoring) -> bool:
        """Whether a span asks for nothing that kernels do not know, and reads what a tier can locate at once."""
        if span.tally is not None or span.top_p is not None or scoring.softcap is not None:
            return False
        recent, shared, fetch = self._reach(layer, span, span.session.layout.blocks(span.end) - 1)
        located = self.layout.kv_heads * (recent + 1 + shared + (fetch or 0))
        return recent + shared <= MOST_READ and located <= span.session.store.tier.window

    def _reach(self, layer: int, span: Span, last: int) -> tuple[int, int, int | None]:
        """Recent blocks, first blocks, and how many others a query in block `last` reads; None if it has no choice."""
        recent, sinks = self._recent(layer), self.settings.sink_blocks
        far_blocks = 0 if self.layers[layer].window else max(0, last - recent)
        fetch = self._fetches(layer, span, far_blocks)
        if self._chooses(layer, span, far_blocks - sinks, fetch):
            return recent, min(far_blocks, sinks), fetch
        return recent, min(far_blocks, sinks if fetch == 0 else far_blocks), None

    def _few_enough(self, layer: int, span: Span, groups: int) -> int:
        """How many queries to take at once: their scores fit into working memory, their blocks into the tier's."""
        last = span.session.layout.blocks(span.end)
        recent, shared, fetch = self._reach(layer, span, last)
        heads, parts = self.layout.kv_heads, len(self.settings.rule.widths(self.layout.head_dim)) + 1
        scores = 4 * parts * heads * groups * last
        located = span.session.store.tier.window // (heads * (recent + 1 + shared + (fetch or 0)))
        return max(1, min(located, WORKING_BYTES // scores if fetch is not None else located, len(span.token_ids)))

    def _read(self, layer: int, rows: Rows, span: Span, scoring: Scoring, step: Step) -> Tensor:
        """One softmax over near, sink and fetched blocks, and the rest: (H, T, G, D)."""
        step.report.queries += self.layout.kv_heads * len(rows.positions)
        recent, shared, fetch = self._reach(layer, span, rows.last_block)
        own = rows.own.numpy()
        output = torch.zeros_like(rows.queries)
        weight = np.full(rows.queries.shape[:3], self._kernels.NOTHING, np.float32)
        near = own[:, None] - np.arange(recent, -1, -1)  # -1 and below: there is no such block
        first = np.arange(shared)
        first = np.where(first < (own - recent)[:, None], first, -1)  # else it is a near one
        fixed = np.concatenate((first, near), axis=1)
        numbers = np.tile(fixed, (self.layout.kv_heads, 1, 1))  # (H, T, M)
        choice = None
        if fetch is not None:
            begun = time.perf_counter()
            chosen = self._choose_blocks(layer, rows, own - recent, fetch, output, weight)
            numbers = np.concatenate((numbers, chosen), axis=2)
            choice = Choice(torch.from_numpy(chosen).clamp(min=0), torch.from_numpy(chosen >= 0))
            step.report.retrieval_seconds += time.perf_counter() - begun
        self._audit(layer, rows, span, step, scoring, Read(recent, shared, choice))
        self._attend_blocks(layer, rows, numbers, recent, weight, output)
        if choice is not None:
            self._count_selected(rows, step, choice.valid)
        return output

    # -- choosing --------------------------------------------------------------------------------------------

    def _choose_blocks(
        self, layer: int, rows: Rows, ends: Numbers, fetch: int, rest: Tensor, weight: Floats
    ) -> Numbers:
        """What each head fetches (H, T, K), -1 for nothing; estimates of what is not read go to rest and weight."""
        heads, settings, sinks = self.layout.kv_heads, self.settings, self.settings.sink_blocks
        if settings.gated and layer == 0:  # all landmarks of layer 0 tie, and the most recent win
            latest = ends[:, None] - 1 - np.arange(fetch)
            return np.tile(np.where(latest >= sinks, latest, -1), (heads, 1, 1))
        index = rows.session.indexes[layer]
        assert index is not None
        chosen = np.empty((heads, len(ends), fetch), np.int64)
        count = max(0, int(ends[-1]))
        padded = -(-count // LANES) * LANES + 4 * LANES
        if settings.gated:
            self._choose_trained(index, rows, sinks, ends, chosen, count, padded)
        else:
            self._recall_moments(index, rows, sinks, ends, chosen, padded, weight, rest)
        return chosen

    def _choose_trained(
        self, index: BlockIndex, rows: Rows, sinks: int, ends: Numbers, chosen: Numbers, count: int, padded: int
    ) -> None:
        """The `count` first blocks are scored by products with their landmark; see `choose` in the kernels."""
        looking = self.settings.rule.look(rows.far_queries, rows.own).flatten(1, 2)  # (H, T * G, W)
        scores = self._working_memory(len(looking), looking.shape[1], padded)
        room = np.empty((len(looking), 2, padded), np.float32)

        def work(some: slice) -> None:
            index.fill(looking, scores[None, ..., :count], some)
            self._recall.choose(scores.numpy(), sinks, ends, chosen, room, some.start, some.stop)

        over_heads(work, len(looking), scores[0].numel())

    def _recall_moments(
        self, index: BlockIndex, rows: Rows, sinks: int, ends: Numbers, chosen: Numbers, padded: int, weight: Floats,
        rest: Tensor,
    ) -> None:  # fmt: skip
        """Choose by mean and variance of a block's keys, and estimate the rest; see `recall_moments`."""
        settings, size = self.settings, self.layout.block_size
        far = rows.far_queries.contiguous().flatten(1, 2)  # (H, T * G, D)
        room = self._working_memory(len(far), 4, far.shape[1], padded)
        how = (expected_largest(size), float(np.log(size)), settings.estimate_rest, settings.rest_slopes)
        arrays = (room.numpy(), chosen, weight, rest.flatten(1, 2).numpy())
        queries, table = far.numpy(), index.table

        def work(some: slice) -> None:
            self._recall.recall_moments(queries, table, sinks, ends, *how, *arrays, some.start, some.stop)

        over_heads(work, len(far), room[0].numel())

    def _working_memory(self, *shape: int) -> Tensor:
        """Room that is used again and again."""
        needed = int(np.prod(shape))
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(2 * needed)
        return self._scratch[:needed].view(shape)

    # -- reading ---------------------------------------------------------------------------------------------

    def _attend_blocks(
        self, layer: int, rows: Rows, numbers: Numbers, recent: int, weight: Floats, output: Tensor
    ) -> None:
        """Replace what is estimated in output (H, T, G, D) by attention over blocks (H, T, M), and the estimate."""
        geometry, size = self.layers[layer], self.layout.block_size
        located = rows.session.store.locate(layer, rows.session.slots(torch.from_numpy(np.maximum(numbers, 0))))
        places = np.where(numbers >= 0, located.at.numpy(), -1)
        turns = sines(geometry.rotation, rows.positions.numpy()).swapaxes(0, 1).copy()  # (T, 2, R)
        stride, apart = (2, 1) if geometry.rotation.interleaved else (1, turns.shape[2])
        starts = self._block_starts(layer, rows.last_block + 1)
        arrays = (rows.queries.numpy(), rows.far_queries.contiguous().numpy(), bits(located.keys), bits(located.values))
        how = (stride, apart, self.settings.gated, self.settings.bounded, rows.positions.numpy(), recent)
        window, result = geometry.window or FAR, output.numpy()

        def work(some: slice) -> None:
            self._kernels.attend(
                *arrays, size, places, numbers, turns, starts, *how, window, weight, result, some.start, some.stop
            )

        over_heads(work, len(result), COLD * result.shape[1] * result.shape[2] * numbers.shape[2] * size)

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
        size, dim = self.layout.block_size, self.layout.head_dim
        query, weight = np.zeros((1, 1, 1, dim), np.float32), np.zeros((1, 1, 1), np.float32)
        room, blocks = np.zeros((1, 4, 1, 5 * LANES), np.float32), np.zeros((1, 1, 1), np.int64)
        ends, turns = np.zeros(1, np.int64), np.zeros((1, 2, 1), np.float32)
        if self.settings.gated:
            self._recall.choose(room[:, 0], 0, ends, blocks, room[:, :2, 0], 0, 1)
        else:
            table, how = np.zeros((0, 12), np.int64), (1.0, 1.0, True, True)
            self._recall.recall_moments(query[0], table, 0, ends, *how, room, blocks, weight, query[0].copy(), 0, 1)
        pool = bits(torch.zeros(1, size, dim, dtype=self.layout.dtype))
        arrays = (query, query, pool, pool, size, blocks, blocks, turns, turns.swapaxes(0, 1).copy())
        self._kernels.attend(*arrays, 1, 1, False, False, ends, 0, 1, weight, query, 0, 1)


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
