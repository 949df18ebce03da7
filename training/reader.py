"""Which blocks a chunk of queries reads, and the one softmax over them: differentiable, and only as large as the chunk.

Knows what `engine` serves: query heads that share keys choose together, windowed layers keep their window, scores may
be capped, and layers may rotate partly or not at all. Does not know that a sequence is longer than a chunk.

Letters in shapes: R rows, H KV heads, G query heads per KV head, C slots of a chunk, N blocks of a row, B slots of a
block, D channels. A pool is what queries may fetch from: each row's own blocks (P = R pools of M = N blocks), or in a
crowd the blocks of all rows (P = 1, M = R * N); Q queries look into a pool (C, or R * C in a crowd).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine import LayerGeometry
from training.attention import LandmarkSettings

NOTHING = -1e30
"""Score of what may not be read: finite, so that a part in which nothing may be read has weight 0 and no NaN."""


@dataclass(frozen=True)
class Blockwise:
    """What the attention function is told, beside the tensors: the model's call takes it as `blockwise`.

    Attributes:
        layers: one geometry per layer
        kv_heads: heads that choose separately, in every layer: a layer with fewer of them repeats its own
        crowd: so many last slots of each row, in whole blocks, also choose among the blocks of the batch's other
            rows (docs/decisions/0003); not in layer 0, where nothing is chosen
        chunk_slots: queries that are taken at once, at least one block of them
        dense_blocks: a pool of at most so many blocks is read whole and masked, which is faster than to gather
    """

    layers: list[LayerGeometry]
    kv_heads: int
    settings: LandmarkSettings = field(default_factory=LandmarkSettings)
    crowd: int = 0
    chunk_slots: int = 64
    dense_blocks: int = 128

    def reader(self, layer: int, softcap: float | None) -> Reader:
        tied = layer == 0
        return Reader(self, self.layers[layer], softcap, tied=tied)


@dataclass(frozen=True)
class Chunk:
    """Consecutive queries, and what they look into.

    Attributes:
        positions: of its queries, within their row (C,)
        first, last: blocks of a row that are near to one of them, last one excluded
        far: blocks at a row's beginning that are far from its last query
        crowd: its queries look into the pool of all rows
    """

    positions: Tensor
    first: int
    last: int
    far: int
    crowd: bool

    @property
    def slots(self) -> slice:
        return slice(int(self.positions[0]), int(self.positions[-1]) + 1)

    def pool(self, x: Tensor) -> Tensor:
        """Blocks (R, H, N, B, D) as (P, H, M, B, D), or queries (R, H, C, …) as (P, H, Q, …)."""
        return x.transpose(0, 1).flatten(1, 2)[None] if self.crowd else x

    def unpool(self, x: Tensor, rows: int) -> Tensor:
        """Inverse of `pool`."""
        return x[0].unflatten(1, (rows, -1)).transpose(0, 1) if self.crowd else x


@dataclass(frozen=True)
class Read:
    """Which blocks of the pool each query reads beside its near ones.

    Attributes:
        blocks: numbers of gathered blocks (P, H, Q, K), or None where the first blocks of the pool are read whole
        allowed: bool (P, H, Q, K) or (P, H, Q, M)
    """

    blocks: Tensor | None
    allowed: Tensor


@dataclass(frozen=True)
class Reader:
    """One layer's attention over chunks: scaled queries (R, H, T, G, D), relative keys and values (R, H, N, B, D).

    Values may have another number of channels than keys; the output has as many.
    """

    plan: Blockwise
    geometry: LayerGeometry
    softcap: float | None
    tied: bool

    @property
    def size(self) -> int:
        return self.plan.settings.block_size

    @property
    def reach(self) -> int:
        """Blocks before a query's own that are read at their true distance."""
        window = self.geometry.window
        return self.plan.settings.recent_blocks if window is None else -(-(window - 1) // self.size)

    def chunks(self, slots: int, device: torch.device) -> Iterator[Chunk]:
        """All queries of a row; those in a crowd are in chunks of their own."""
        step = max(1, self.plan.chunk_slots // self.size) * self.size
        crowd = 0 if self.tied or self.geometry.window is not None else -(-self.plan.crowd // self.size) * self.size
        alone = max(0, slots - crowd)
        for start in (*range(0, alone, step), *range(alone, slots, step)):
            end = min(start + step, alone if start < alone else slots)
            first, last = start // self.size, -(-end // self.size)
            far = 0 if self.geometry.window is not None else max(0, last - 1 - self.reach)
            positions = torch.arange(start, end, device=device)
            yield Chunk(positions, max(0, first - self.reach), last, far, crowd=start >= alone)

    def scaled(self, q: Tensor) -> Tensor:
        """Queries (R, heads, T, D) with what the layer multiplies them with by their position."""
        temperature = self.geometry.temperature
        if temperature is None:
            return q
        return q * temperature(torch.arange(q.shape[2], device=q.device))[:, None].to(q.dtype)

    # -- choosing --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def choose(self, chunk: Chunk, q: Tensor, pool: Tensor) -> Read | None:
        """What the chunk's queries (R, H, C, G, D) read of the pool (P, H, M, B, D); None for nothing at all."""
        blocks = pool.shape[2] if chunk.crowd else chunk.far
        if blocks == 0:
            return None
        sinks, candidates = self._standing(chunk, q.shape[0], blocks)  # (P or 1, 1, Q, blocks)
        fetch = min(self.plan.settings.blocks_per_head, blocks)
        ranks = self._ranks(chunk, q, pool[:, :, :blocks, -1]).masked_fill(~candidates, -torch.inf)
        best = ranks.topk(fetch, dim=-1)
        if blocks <= self.plan.dense_blocks:
            chosen = torch.zeros_like(ranks, dtype=torch.bool).scatter_(-1, best.indices, best.values > -torch.inf)
            return Read(None, (chosen | sinks).expand(pool.shape[0], pool.shape[1], -1, -1))
        return self._gathered(chunk, best.indices, best.values > -torch.inf, sinks)

    def _standing(self, chunk: Chunk, rows: int, blocks: int) -> tuple[Tensor, Tensor]:
        """Far sinks, and blocks that may be fetched: both bool (1, 1, Q, blocks)."""
        device, sinks = chunk.positions.device, self.plan.settings.sink_blocks
        block = torch.arange(blocks // rows if chunk.crowd else blocks, device=device)
        far = block < (chunk.positions // self.size - self.reach)[:, None]  # (C, blocks of a row)
        sink, candidate = far & (block < sinks), far & (block >= sinks)
        if chunk.crowd:
            own = torch.eye(rows, dtype=torch.bool, device=device)[:, None, :, None]  # (R, 1, R, 1)
            sink = (own & sink[:, None]).flatten(2).flatten(0, 1)
            candidate = torch.where(own, candidate[:, None], True).flatten(2).flatten(0, 1)
        return sink[None, None], candidate[None, None]

    def _ranks(self, chunk: Chunk, q: Tensor, landmarks: Tensor) -> Tensor:
        """How well landmarks (P, H, blocks, D) suit each query: (P, H, Q, blocks).

        In layer 0 all landmarks are alike, and the most recent win. Elsewhere query heads that share keys choose
        together, by the mean of their softmaxes: the mask that comes later hides the same blocks from all of them.
        """
        if self.tied:
            order = torch.arange(landmarks.shape[2], device=q.device, dtype=q.dtype)
            return order.expand(*landmarks.shape[:2], q.shape[2], -1)
        queries = chunk.pool(self._far_queries(chunk, q))  # (P, H, Q, G, D)
        scores = (queries.flatten(2, 3) @ landmarks.mT).unflatten(2, queries.shape[2:4])
        if scores.shape[3] == 1:
            return scores[:, :, :, 0]
        _, candidates = self._standing(chunk, q.shape[0], landmarks.shape[2])
        return scores.masked_fill(~candidates[:, :, :, None], -torch.inf).softmax(-1).nan_to_num(0.0).mean(3)

    def _gathered(self, chunk: Chunk, indices: Tensor, valid: Tensor, sinks: Tensor) -> Read:
        """Fetched blocks (P, H, Q, K), and beside them the row's sinks where they are far."""
        queries, row = indices.shape[2], len(chunk.positions)
        rows = torch.arange(queries, device=indices.device) // row  # 0 for all without a crowd
        width = sinks.shape[-1] // (queries // row)
        first = torch.arange(min(self.plan.settings.sink_blocks, width), device=indices.device)
        first = first + rows[:, None] * width  # (Q, sinks)
        shape = (*indices.shape[:3], first.shape[1])
        is_far = sinks.gather(-1, first[None, None])
        return Read(torch.cat((indices, first.expand(shape)), -1), torch.cat((valid, is_far.expand(shape)), -1))

    # -- reading ---------------------------------------------------------------------------------------------

    def taken(self, chunk: Chunk, read: Read, pool: Tensor) -> Tensor:
        """Blocks of the pool that are read: (P, H, M, B, D), or gathered (P, H, Q, K, B, D)."""
        if read.blocks is None:
            return pool if chunk.crowd else pool[:, :, : chunk.far]
        return pool.flatten(0, 2)[self._places(read.blocks, pool)]

    def _places(self, blocks: Tensor, pool: Tensor) -> Tensor:
        """Block numbers (P, H, Q, K) as places in the flattened pool."""
        heads = torch.arange(pool.shape[0] * pool.shape[1], device=pool.device).view(*pool.shape[:2], 1, 1)
        return heads * pool.shape[2] + blocks

    def give_back(self, chunk: Chunk, read: Read, grad: Tensor, pool: Tensor) -> None:
        """Add the gradient of what `taken` took to the gradient of the pool."""
        if read.blocks is None:
            (pool if chunk.crowd else pool[:, :, : chunk.far]).add_(grad)
        else:
            places = self._places(read.blocks, pool).flatten()
            pool.view(-1, *pool.shape[3:]).index_add_(0, places, grad.flatten(0, 3))

    def attend(self, chunk: Chunk, read: Read | None, q: Tensor, near: list[Tensor], far: list[Tensor]) -> Tensor:
        """One softmax over near and far blocks: (R, H, C, G, D).

        Args:
            near: keys and values (R, H, blocks, B, D) from `chunk.first` to `chunk.last`
            far: keys and values of what is read beside, as `taken` gives them
        """
        output, weight = self._near(chunk, q, *near)
        if read is not None:
            other, other_weight = (chunk.unpool(x, q.shape[0]) for x in self._far(chunk, read, q, *far))
            share = (other_weight - weight).sigmoid()
            output, weight = output + share * (other - output), torch.logaddexp(weight, other_weight)
        if self.geometry.void is None:
            return output
        void = self.geometry.void.view(q.shape[1], 1, -1, 1)  # (H, 1, G, 1), as it was loaded: it is not trained
        return output * (weight - void).sigmoid()

    def _near(self, chunk: Chunk, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Own and recent blocks, causally and within the window: (R, H, C, G, D), and the logarithm of its weight."""
        start, rotation = chunk.first * self.size, self.geometry.rotation
        blocks = torch.arange(chunk.first, chunk.last, device=q.device)
        slots = blocks[:, None] * self.size + torch.arange(self.size, device=q.device)  # (blocks, B)
        rotated = rotation(keys, slots[:, :1] - start)
        queries = rotation(q, (chunk.positions - start)[:, None])
        scores = (queries.flatten(2, 3) @ rotated.flatten(2, 3).mT).view(*q.shape[:4], *slots.shape)
        age = (chunk.positions // self.size)[:, None] - blocks  # (C, blocks)
        distance = chunk.positions[:, None, None] - slots  # (C, blocks, B)
        allowed = (distance >= 0) & (age <= self.reach)[..., None]
        if self.geometry.window is not None:
            allowed &= distance < self.geometry.window
        scores = self._gate(scores, (age == 0)[:, None]).masked_fill(~allowed[:, None, :, :-1], NOTHING)
        return self._read(scores.flatten(2, 3).flatten(3), values[:, :, :, :-1].flatten(2, 3), q.shape)

    def _far(self, chunk: Chunk, read: Read, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks of the pool, all at one distance: output (P, H, Q, G, D), and logarithm of its weight."""
        queries = chunk.pool(self._far_queries(chunk, q))  # (P, H, Q, G, D)
        if read.blocks is None:
            scores = queries.flatten(2, 3) @ keys.flatten(2, 3).mT  # (P, H, Q * G, M * B)
        else:
            scores = queries @ keys.flatten(3, 4).mT  # (P, H, Q, G, K * B)
        scores = self._gate(scores.view(*queries.shape[:4], -1, self.size), None)
        scores = scores.masked_fill(~read.allowed[:, :, :, None, :, None], NOTHING)
        if read.blocks is None:
            return self._read(scores.flatten(2, 3).flatten(3), values[:, :, :, :-1].flatten(2, 3), queries.shape)
        return self._read(scores.flatten(4), values[:, :, :, :, :-1].flatten(3, 4), queries.shape)

    def _far_queries(self, chunk: Chunk, q: Tensor) -> Tensor:
        """Queries as every far block sees them, wherever it stands."""
        distance = (self.reach + 1) * self.size + chunk.positions % self.size
        return self.geometry.rotation(q, distance[:, None])

    def _gate(self, scores: Tensor, own: Tensor | None) -> Tensor:
        """`landmark score - logsumexp(block)` on each text score: (…, blocks, B) -> (…, blocks, B - 1)."""
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        text = scores[..., :-1]
        shift = scores[..., -1] - text.logsumexp(-1)
        if own is not None:
            shift = shift.masked_fill(own, 0.0)
        return text + shift[..., None]

    def _read(self, scores: Tensor, values: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Softmax of scores (…, queries, keys) over values (…, keys, D), and the logarithm of its sum."""
        peak = scores.detach().amax(-1, keepdim=True)
        mass = (scores - peak).exp()
        total = mass.sum(-1, keepdim=True)
        return (mass @ values / total).view(*shape[:-1], -1), (peak + total.log()).view(*shape[:-1], 1)
