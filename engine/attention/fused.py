"""The same meaning as the reference on a CPU, without copying the blocks that it reads.

One query of a session, as each decoded token is, goes through kernels from end to end (`decoding`). For many queries,
choosing the best blocks is one pass over the scores, and fp32 caches with bounded positions are read in place where the
reference gathers each query's blocks. Whatever else is asked goes the reference's way.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cache import CacheLayout
from engine.attention.base import LayerGeometry, RetrievalSettings
from engine.attention.choosing import Choice
from engine.attention.parts import Scoring, combine
from engine.attention.reference import ReferenceAttention
from engine.attention.rows import Rows
from engine.step import Span, Step

if TYPE_CHECKING:
    from engine.attention.decoding import Decoder

DECODED_RULES = ("trained", "moments")
"""Their scores are made by kernels, too."""
ROWS_PER_THREAD = 64
"""Fewer rows than this are not worth a thread's wake-up."""


class FusedAttention(ReferenceAttention):
    """See the module; arguments as the reference's."""

    def __init__(self, layers: list[LayerGeometry], layout: CacheLayout, settings: RetrievalSettings) -> None:
        super().__init__(layers, layout, settings)
        from engine.attention import kernels  # loads Numba, which a server with another dtype does not need

        self._kernels = kernels
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="attention")
        self._compile()
        self._in_place = reads_in_place(layout, settings)
        self.gathers = not self._in_place
        self._decoder: Decoder | None = None
        if decodes(layout, settings):
            from engine.attention.decoding import Decoder

            self._decoder = Decoder(layers, layout, settings)

    def _compile(self) -> None:
        """Compile now, or load what an earlier start compiled, rather than in somebody's first request."""
        queries = torch.zeros(1, 1, 1, self.layout.head_dim)
        pool = torch.zeros(1, self.layout.block_size, self.layout.head_dim)
        places, ends = torch.zeros(1, 1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
        arrays = [x.numpy() for x in (queries, pool, pool, places)]
        self._kernels.attend_fetched(*arrays, True, torch.zeros_like(queries).numpy(), np.zeros((1, 1, 1), "f4"), 0, 1)
        self._kernels.top_blocks(np.zeros((1, 1, 1), "f4"), 0, ends.numpy(), places.numpy(), 0, 1)

    @staticmethod
    def serves(layout: CacheLayout, settings: RetrievalSettings) -> bool:
        """Whether the kernels help a cache of this kind."""
        return reads_in_place(layout, settings) or decodes(layout, settings)

    def _attend(self, layer: int, span: Span, q: Tensor, scoring: Scoring, step: Step, output: Tensor) -> None:
        if not self._decode(layer, span, q, scoring, step, output):
            super()._attend(layer, span, q, scoring, step, output)

    def _decode(self, layer: int, span: Span, q: Tensor, scoring: Scoring, step: Step, output: Tensor) -> bool:
        """Attend by the kernels for one query, as `_attend` does; whether they serve it."""
        if self._decoder is None or not self._decoder.reads(span, scoring.softcap):
            return False
        recent = self._recent(layer)
        far_blocks = 0 if self.layers[layer].window else max(0, span.first // self.layout.block_size - recent)
        fetch = self._fetches(layer, span, far_blocks)
        choosing = self._chooses(layer, span, far_blocks - self.settings.sink_blocks, fetch)
        query = q.unflatten(1, (self.layout.kv_heads, -1)).transpose(0, 1)  # (H, 1, G, D)
        attended = self._decoder(layer, span, query, recent, far_blocks, fetch, choosing=choosing, step=step)
        if attended is None:
            return False
        output.copy_(attended.transpose(0, 1).flatten(1, 2))
        return True

    def _attend_fetched(
        self, layer: int, rows: Rows, span: Span, scoring: Scoring, step: Step, far_blocks: int, fetch: int
    ) -> Tensor:
        special = span.tally is not None or scoring.softcap is not None or self.settings.rule.replaces_mass
        if special or not self._in_place:
            return super()._attend_fetched(layer, rows, span, scoring, step, far_blocks, fetch)
        parts = self._shared_parts(layer, rows, scoring, self.settings.sink_blocks)
        choice = self._timed_select(layer, rows, scoring, parts, span, step, far_blocks, fetch)
        if self.settings.estimate_rest:
            parts.append(self._rest(layer, rows, scoring, choice))
        near, _ = combine(parts)
        near_weight = torch.cat([part.scores.flatten(3) for part in parts], dim=-1).logsumexp(-1)  # (H, T, G)
        far, far_weight = self._read_in_place(layer, rows, choice)
        share = (far_weight - near_weight).sigmoid()[..., None]
        self._count_selected(rows, step, choice.valid)
        return near + share * (far - near)

    def _read_in_place(self, layer: int, rows: Rows, choice: Choice) -> tuple[Tensor, Tensor]:
        """Attention over the chosen blocks alone, and the logarithm of its weight: (H, T, G, D), (H, T, G)."""
        slots = rows.session.slots(choice.blocks)
        places = rows.session.store.locate(layer, slots)
        at = places.at.masked_fill(~choice.valid, -1).contiguous()
        queries = rows.far_queries.contiguous()
        output, weight = torch.empty_like(queries), torch.empty(queries.shape[:3])
        arrays = [x.numpy() for x in (queries, places.keys, places.values, at)]
        results = (output.numpy(), weight.numpy())
        self._over_rows(
            at.shape[0] * at.shape[1],
            lambda start, stop: self._kernels.attend_fetched(*arrays, self.settings.gated, *results, start, stop),
        )
        return output, weight

    def _best(self, scores: Tensor, ends: Tensor, fetch: int) -> tuple[Tensor, Tensor]:
        blocks = torch.empty((*scores.shape[:2], fetch), dtype=torch.int64)
        arrays = (scores.contiguous().numpy(), self.settings.sink_blocks, ends.numpy(), blocks.numpy())
        self._over_rows(
            scores.shape[0] * scores.shape[1],
            lambda start, stop: self._kernels.top_blocks(*arrays, start, stop),
        )
        return blocks.clamp(min=0), blocks >= 0

    def _over_rows(self, rows: int, kernel: Callable[[int, int], None]) -> None:
        """Run a kernel over all rows, on several threads if that is worth it."""
        pieces = max(1, min(self._threads, rows // ROWS_PER_THREAD))
        borders = [rows * i // pieces for i in range(pieces + 1)]
        if pieces == 1:
            kernel(0, rows)
        else:
            list(self._pool.map(kernel, borders[:-1], borders[1:]))


def reads_in_place(layout: CacheLayout, settings: RetrievalSettings) -> bool:
    """Whether kernels read what many queries fetched."""
    return settings.bounded and layout.dtype == torch.float32


def decodes(layout: CacheLayout, settings: RetrievalSettings) -> bool:
    """Whether kernels attend for one query from end to end."""
    known = settings.landmarks in DECODED_RULES and settings.landmarks_per_block == 1 and not settings.outlier_blocks
    return known and layout.dtype in (torch.float32, torch.bfloat16)
