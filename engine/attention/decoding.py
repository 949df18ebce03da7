"""Attention of one query of a session on a CPU: what a decoded token costs beside the model's own matrices.

The same meaning as the reference in three calls of kernels for each layer: choose, find where blocks lie, attend. The
reference makes some sixty tensors for it, which costs more than reading the blocks.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import CacheLayout, Session, expected_largest, over_heads
from engine.attention import decode_kernels
from engine.attention.base import LayerGeometry, RetrievalSettings
from engine.rotation import Rotation
from engine.step import Span, Step

JUDGES = {"trained": None, "moments": decode_kernels.judge_moments}
"""Rules whose scores a kernel makes of their products; None where a product is the score."""
MOST_READ = 128
"""Blocks that a layer reads beside the fetched ones; for more of them a matrix product is faster."""
Numbers = NDArray[np.int64]
Floats = NDArray[np.float32]


class Decoder:
    """See the module.

    Args:
        layers, layout, settings: as the attention's
    """

    def __init__(self, layers: list[LayerGeometry], layout: CacheLayout, settings: RetrievalSettings) -> None:
        self._layers = layers
        self._layout = layout
        self._settings = settings
        self._starts: dict[int, Floats] = {}  # by layer: cosine and sine of the first position of each block
        self._scratch = torch.empty(0)
        self._warm_up()

    def reads(self, span: Span, softcap: float | None) -> bool:
        """Whether a span is one query that asks for nothing else than attention."""
        plain = span.tally is None and span.top_p is None and softcap is None
        return plain and len(span.token_ids) == 1 and not span.samples

    def __call__(
        self,
        layer: int,
        span: Span,
        queries: Tensor,
        recent: int,
        far_blocks: int,
        fetch: int,
        *,
        choosing: bool,
        step: Step,
    ) -> Tensor | None:
        """Attention of a query whose key is stored already; None if it reads too much for these kernels.

        Args:
            queries: unrotated and scaled (H, 1, G, D) fp32
            recent: blocks before the query's own that it reads at their true distance
            far_blocks: blocks before those
            fetch: how many of them it may read
            choosing: whether landmarks have a say

        Returns:
            (H, 1, G, D)
        """
        own = span.first // self._layout.block_size
        near = max(0, own - recent)
        shared = min(far_blocks, self._settings.sink_blocks if choosing or fetch == 0 else far_blocks)
        if shared > MOST_READ:
            return None
        step.report.queries += self._layout.kv_heads
        query, rotation = queries[:, 0].contiguous(), self._layers[layer].rotation
        turn, far = self._turned(query, span, rotation, recent)
        output, weight = torch.zeros_like(query), np.full(query.shape[:2], decode_kernels.NOTHING, np.float32)
        fixed = np.concatenate((np.arange(shared), np.arange(near, own + 1)))
        numbers = np.tile(fixed, (self._layout.kv_heads, 1))
        if choosing:
            begun = time.perf_counter()
            chosen = self._choose(layer, span.session, far, own, far_blocks, fetch, output, weight)
            numbers = np.concatenate((numbers, chosen), axis=1)
            step.report.retrieval_seconds += time.perf_counter() - begun
        places = self._locate(layer, span.session, numbers)
        if choosing:
            step.report.count(int((chosen >= 0).sum()), span.session.store)
        self._attend(layer, query, far, places, numbers, turn, near, span.first, weight, output)
        return output[:, None]

    # -- positions -------------------------------------------------------------------------------------------

    def _turned(self, query: Tensor, span: Span, rotation: Rotation, recent: int) -> tuple[Floats, Tensor]:
        """Cosine and sine of the query's position (2, R), and the query as far blocks see it (H, G, D)."""
        size = self._layout.block_size
        distance = (recent + 1) * size + span.first % size if self._settings.bounded else span.first
        return turns(rotation, np.array([span.first]))[:, 0].copy(), rotation(query, torch.tensor(distance))

    def _block_starts(self, layer: int, blocks: int) -> Floats:
        """Cosine and sine of the first position of blocks 0, 1, … (2, at least so many, R)."""
        known = self._starts.get(layer)
        if known is None or known.shape[1] < blocks:
            rotation = self._layers[layer].rotation
            count = 1 << max(8, (blocks - 1).bit_length())
            known = turns(rotation, np.arange(count) * self._layout.block_size)
            for other, geometry in enumerate(self._layers):  # most layers turn alike
                if geometry.rotation is rotation:
                    self._starts[other] = known
        return known

    # -- choosing --------------------------------------------------------------------------------------------

    def _choose(
        self, layer: int, session: Session, far: Tensor, own: int, count: int, fetch: int, rest: Tensor, weight: Floats
    ) -> Numbers:
        """What each head fetches (H, K), -1 for nothing; estimates of what it does not read go to rest and weight."""
        heads, settings = self._layout.kv_heads, self._settings
        if settings.gated and layer == 0:  # all landmarks of layer 0 tie, and the most recent win
            latest = np.arange(count - 1, count - 1 - fetch, -1)
            return np.tile(np.where(latest >= settings.sink_blocks, latest, -1), (heads, 1))
        index = session.indexes[layer]
        assert index is not None
        looking = settings.rule.look(far[:, None], torch.tensor([own]))[:, 0]  # (H, G, W)
        chosen = np.empty((heads, fetch), np.int64)
        products, turned = self._working_memory(len(index.shape.widths), far.shape[1], count)
        judge, judged = JUDGES[settings.landmarks], products.numpy()
        reach, log_size = expected_largest(self._layout.block_size), float(np.log(self._layout.block_size))

        def work(some: slice) -> None:
            index.fill(looking, products, some)
            if judge is not None:
                for head in range(some.start, some.stop):
                    judge(judged, reach, log_size, head)
            decode_kernels.choose(judged[-1], settings.sink_blocks, chosen, some.start, some.stop)
            if settings.estimate_rest:
                decode_kernels.weigh_rest(judged[0], settings.sink_blocks, chosen, weight, some.start, some.stop)
                index.add_values(products[0], far, turned, rest, some)

        over_heads(work, heads, products[:, 0].numel())
        return chosen

    def _working_memory(self, parts: int, groups: int, count: int) -> tuple[Tensor, Tensor]:
        """Room for products (parts, H, G, count) and once more (H, G, count), used again and again."""
        shape = (parts + 1, self._layout.kv_heads, groups, count)
        needed = int(np.prod(shape))
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(2 * needed)
        room = self._scratch[:needed].view(shape)
        return room[:-1], room[-1]

    # -- reading ---------------------------------------------------------------------------------------------

    def _locate(self, layer: int, session: Session, numbers: Numbers) -> tuple[NDArray[Any], NDArray[Any], Numbers]:
        """Keys, values (places, B, D) and the places (H, M) of blocks."""
        slots = session.slots(torch.from_numpy(np.maximum(numbers, 0)))
        places = session.store.locate(layer, slots)
        at = np.where(numbers >= 0, places.at.numpy(), -1)
        return bits(places.keys), bits(places.values), at

    def _attend(
        self,
        layer: int,
        query: Tensor,
        far: Tensor,
        located: tuple[NDArray[Any], NDArray[Any], Numbers],
        numbers: Numbers,
        turn: Floats,
        near: int,
        position: int,
        weight: Floats,
        output: Tensor,
    ) -> None:
        """Replace what is estimated in output (H, G, D) by attention over what is read, and the estimate."""
        geometry, size = self._layers[layer], self._layout.block_size
        starts, interleaved = self._block_starts(layer, position // size + 1), geometry.rotation.interleaved
        stride, apart = (2, 1) if interleaved else (1, turn.shape[1])
        oldest = 0 if geometry.window is None else position - geometry.window + 1
        how = (stride, apart, self._settings.gated, self._settings.bounded, near, position, oldest)
        keys, values, places = located
        arrays = (query.numpy(), far.numpy(), keys, values, places, numbers, turn, starts)
        result = output.numpy()

        def work(some: slice) -> None:
            decode_kernels.attend(*arrays, *how, weight, result, some.start, some.stop)

        over_heads(work, len(result), result.shape[1] * numbers.shape[1] * size)

    def _warm_up(self) -> None:
        """Compile now, or load what an earlier start compiled, rather than in somebody's first request."""
        size, dim = self._layout.block_size, self._layout.head_dim
        query, weight = torch.zeros(1, 1, dim), np.zeros((1, 1), np.float32)
        products, blocks = np.zeros((2, 1, 1, 1), np.float32), np.zeros((1, 1), np.int64)
        decode_kernels.judge_moments(products, 1.0, 1.0, 0)
        decode_kernels.choose(products[0], 0, blocks, 0, 1)
        decode_kernels.weigh_rest(products[0], 0, blocks, weight, 0, 1)
        pool = bits(torch.zeros(1, size, dim, dtype=self._layout.dtype))
        turn = np.ones((2, 1), np.float32)
        arrays = (query.numpy(), query.numpy(), pool, pool, blocks, blocks, turn, turn[:, None].copy())
        decode_kernels.attend(*arrays, 1, 1, False, False, 0, 0, 0, weight, query.numpy(), 0, 1)


def turns(rotation: Rotation, positions: Numbers) -> Floats:
    """Cosine and sine of positions (P,) in each pair of channels: (2, P, R); no pairs for a layer without positions."""
    if rotation.frequencies is None:
        return np.empty((2, len(positions), 0), np.float32)
    angles = positions[:, None] * rotation.frequencies.numpy()
    return np.stack((np.cos(angles), np.sin(angles))).astype(np.float32)


def bits(pool: Tensor) -> NDArray[Any]:
    """A cache's tensor as kernels take it: fp32, or the bits of bf16."""
    return pool.view(torch.uint16).numpy() if pool.dtype == torch.bfloat16 else pool.numpy()
