"""What a session knows about its sealed blocks in one layer: their landmarks, and what the settings ask beside them.

Owns which vectors belong to a block. Knows neither rules nor positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.centred import Centred
from cache.four_bits import LARGEST, ByChannel, ByRow
from cache.gathering import Gathering
from cache.layout import Bytes
from cache.opened import Opened
from cache.packed import Packed
from cache.pages import Slab
from cache.rows import CPU, Rows
from cache.sections import PAIR, PAIRS, SECTION
from cache.stretches import Stretches
from cache.summary import Summary
from cache.usual import BEGINNING, Told, Usual, narrow
from cache.vectors import Meter, Vectors, table_of

Numbers = NDArray[np.int64]
GATHERED = 256
"""Sections whose blocks are widened at once."""


@dataclass(frozen=True)
class IndexShape:
    """What is kept of a block, per KV head.

    Attributes:
        widths: channels of a landmark, in parts that each make a product of its own with a query
        landmarks: landmarks of a block
        values: channels of its mean value, 0 to keep none
        slopes: whether to keep how its mean value turns with the query
        outlying: whether to keep how badly its landmark represents it
        copies: positions of a block and channels of its keys and values, all of which are kept once more; (0, 0) keeps
            none
        rounded: whether vectors are kept in 4 bits, each with a scale of its own, or in fp32
        centred: whether of rounded landmarks, each of one part, what they differ in is kept
        tiled: whether of centred ones whole stretches are kept once more, for whoever looks at tiles of them
        gathering: how pairs and sections come to stand for blocks, if they are to be kept as well
    """

    widths: tuple[int, ...]
    landmarks: int = 1
    values: int = 0
    slopes: bool = False
    outlying: bool = False
    copies: tuple[int, int] = (0, 0)
    rounded: bool = False
    centred: bool = False
    tiled: bool = False
    gathering: Gathering | None = None

    def in_layer(self, layer: int) -> IndexShape:
        """The same in a layer of a model."""
        return replace(self, gathering=self.gathering and self.gathering.in_layer(layer))

    @property
    def of_pairs(self) -> IndexShape:
        """What is kept of a pair."""
        return IndexShape(self.gathering.pair_widths if self.gathering else (), rounded=self.rounded)

    @property
    def of_sections(self) -> IndexShape:
        """What is kept of a section."""
        return IndexShape((), values=narrow(self.values), slopes=self.slopes, rounded=self.rounded)

    def memory_bytes(self, device: torch.device = CPU) -> int:
        """Bytes that a block takes in memory, its part of what stands for several included, per KV head."""
        if self.centred and self.rounded and self.tiled:
            storage = ByRow if device.type == "cpu" else Packed
            return self.block_bytes + Stretches.row_bytes(storage, 1, self.widths[0])
        if self.gathering is None:
            return self.block_bytes
        more = -(-(PAIRS * self.of_pairs.block_bytes + self.of_sections.block_bytes) // SECTION)
        more += -(-Usual.head_bytes(self.widths[0]) // self.gathering.begin)  # of the shortest session that has it
        return self.block_bytes + more + (Opened.row_bytes(1, self.opened_width) if self.opens(device) else 0)

    def opens(self, device: torch.device) -> bool:
        """Whether what is looked at of opened pairs is kept in one place, too: where kernels read it."""
        return self.gathering is not None and self.rounded and device.type == "cpu"

    @property
    def opened_width(self) -> int:
        """Of a block its mean, its slope and a size."""
        return 2 * self.widths[0] + 1

    @property
    def block_bytes(self) -> int:
        """Bytes that are kept of a block, per KV head; pairs and sections follow from them."""
        return BlockIndex(1, self).block_bytes

    @property
    def copy_bytes(self) -> int:
        """Bytes of these that are its copy."""
        return self.block_bytes - replace(self, copies=(0, 0)).block_bytes


class BlockIndex:
    """Summaries of blocks 0, 1, 2, … of a session.

    Args:
        kv_heads: heads that choose separately
        shape: what is kept of a block
        meter: counts the memory that it takes
        device: where it lies: where attention computes
        slab: where it lies if it is large
        stands_for: blocks of the session that a block of this index is

    Attributes:
        pairs: what is looked at of pairs of blocks, if the shape asks for it
        sections: mean values and slopes of sections of blocks, if the shape asks for them
    """

    def __init__(
        self,
        kv_heads: int,
        shape: IndexShape,
        meter: Meter | None = None,
        device: torch.device = CPU,
        slab: Slab | None = None,
        stands_for: int = 1,
    ) -> None:
        self.shape = shape
        self.count = 0
        self._kv_heads = kv_heads
        self._meter, self._device = meter or Meter(), device
        self._slab, self._stands_for = slab or Slab(), stands_for

        def vectors(width: int, storage: type[Rows]) -> Vectors:
            rounded = storage if device.type == "cpu" else Packed
            kind = rounded if shape.rounded else Rows
            return Vectors(kv_heads, width, kind, meter, self._slab, device, stands_for=stands_for)

        def landmarks(width: int) -> Vectors | Centred:
            if not (shape.centred and shape.rounded):
                return vectors(width, ByRow)
            storage = ByRow if device.type == "cpu" else Packed
            return Centred(kv_heads, width, storage, meter, self._slab, device, tiled=shape.tiled)

        self._landmarks = [landmarks(width) for width in shape.widths]
        self._values = vectors(shape.values, ByChannel)
        self._slopes = [vectors(shape.values, kind) for kind in (ByRow, ByChannel) if shape.slopes]
        self._outlying = Vectors(kv_heads, 1, meter=meter, device=device)
        self._copies = [vectors(shape.copies[1], kind) for kind in (ByRow, ByChannel) if shape.copies[0]]
        lying = meter, device, self._slab
        self.pairs = BlockIndex(kv_heads, shape.of_pairs, *lying, PAIR) if shape.gathering else None
        self.sections = BlockIndex(kv_heads, shape.of_sections, *lying, SECTION) if shape.gathering else None
        self._told = Told()
        self._opened = vectors(shape.opened_width, Opened) if shape.opens(device) else None

    def add(self, summary: Summary) -> None:
        """Append the next blocks; if that fails, for want of memory, it has none of them."""
        with self._wholly():
            self._add(summary)

    @contextlib.contextmanager
    def _wholly(self) -> Iterator[None]:
        """Let what is appended be there with all its parts, or not at all: a row tells by its place whose it is."""
        count = self.count
        try:
            yield
        except BaseException:
            vars(self).update(vars(self.fork(count, self._slab)))
            raise
        finally:
            for table in ("table", "opened_table", "stretches_table", "copies_table"):
                vars(self).pop(table, None)

    def _add(self, summary: Summary) -> None:
        parts = summary.landmarks.flatten(1, 2).split(self.shape.widths, dim=-1) if self.shape.widths else ()
        for vectors, rows in zip(self._landmarks, parts, strict=True):
            vectors.add(rows)
        if self.shape.values:
            assert summary.values is not None
            self._values.add(summary.values)
        if self.shape.slopes:
            assert summary.slopes is not None
            for vectors, rows in zip(self._slopes, summary.slopes, strict=True):
                vectors.add(rows)
        if self.shape.outlying:
            assert summary.outlying is not None
            self._outlying.add(summary.outlying[..., None])
        if self._copies:
            assert summary.copies is not None
            for vectors, rows in zip(self._copies, summary.copies, strict=True):
                vectors.add(rows.flatten(1, 2))
        self.count += summary.landmarks.shape[1]
        self._gather()

    def _gather(self) -> None:
        """Summarise the pairs and sections of those that have become full, a bounded number at a time."""
        gathering = self.shape.gathering
        if gathering is None or self.sections is None or self.pairs is None or not self._ready:
            return
        usual = self._told.once(lambda: gathering.usual(self._summary(0, BEGINNING)), self._meter)
        while (first := self.sections.count) < self._ready // SECTION:
            last = min(self._ready // SECTION, first + GATHERED)
            pairs, sections = gathering.gather(self._summary(first * SECTION, last * SECTION), usual)
            self.pairs.add(pairs)
            self.sections.add(sections)
        while self._opened is not None and (first := self._opened.count) < self._ready:
            last = min(self._ready, first + GATHERED * SECTION)
            mean, variance, along = (each.rows(last, first) for each in (*self._landmarks, self._slopes[0]))
            self._opened.add(torch.cat((mean, along, variance.amax(-1, keepdim=True) / LARGEST), -1))

    @property
    def _ready(self) -> int:
        """Of how many blocks pairs and sections can be looked at."""
        return self.shape.gathering.ready(self.count) if self.shape.gathering else 0

    @property
    def usual(self) -> Usual | None:
        """What the first blocks tell of all, if the shape asks for it, once pairs begin to be made ready."""
        return self._told.usual if self._ready else None

    def _summary(self, first: int, last: int) -> Summary:
        """What stands for blocks first, …, last - 1, as it is kept; of one landmark each, and without copies."""
        landmarks = torch.cat([vectors.rows(last, first) for vectors in self._landmarks], dim=-1)
        values = self._values.rows(last, first) if self.shape.values else None
        slopes = tuple(vectors.rows(last, first) for vectors in self._slopes)
        return Summary(landmarks[:, :, None], values, (slopes[0], slopes[1]) if slopes else None)

    def products(self, queries: Tensor, count: int) -> Tensor:
        """Dot products of queries (kv_heads, queries, width) with each landmark of the first `count` blocks, by part.

        Returns:
            (kv_heads, queries, count * landmarks, parts), a block's landmarks side by side
        """
        rows = count * self.shape.landmarks
        parts = queries.split(self.shape.widths, dim=-1)
        products = [v.scores(q, rows) for v, q in zip(self._landmarks, parts, strict=True)]
        return products[0][..., None] if len(products) == 1 else torch.stack(products, dim=-1)

    @property
    def stretches(self) -> Stretches:
        """Whole stretches of landmarks that are centred."""
        (landmarks,) = self._landmarks
        assert isinstance(landmarks, Centred)
        return landmarks.stretches

    def largest(self, count: int) -> Tensor:
        """The largest channels of each landmark of the first `count` blocks, by part: (kv_heads, landmarks, parts)."""
        rows = count * self.shape.landmarks
        return torch.stack([vectors.largest(rows) for vectors in self._landmarks], dim=-1)

    def fill(self, looking: Tensor, found: Tensor, heads: slice) -> None:
        """Fill found (parts, kv_heads, queries, blocks) with products of (kv_heads, queries, width), for such heads.

        Only of an index with one landmark for each block, which is not centred.
        """
        for vectors, part, products in zip(self._landmarks, looking.split(self.shape.widths, -1), found, strict=True):
            assert isinstance(vectors, Vectors)
            vectors.fill(part.contiguous(), products, heads)

    @cached_property
    def table(self) -> Numbers:
        """Where an index in 4 bits lies on a CPU, for kernels: (segments, 2 + 2 * parts).

        Of each segment of storage its capacity, how many of its rows belong to the index, and for each part the
        addresses of its words and scales; parts are those of a landmark, mean values and both vectors of their slopes.
        Where pairs are gathered, the addresses of what is `usual` stand in three last columns. Of centred landmarks see
        `Centred.table`.
        """
        kept = [vectors for vectors, _ in self._summaries]
        if isinstance(kept[0], Centred):
            return kept[0].table
        table = table_of([vectors for vectors in kept if isinstance(vectors, Vectors)])
        if self.pairs is None:
            return table
        return np.column_stack((table, np.tile(self.usual.addresses if self.usual else (0,) * 3, (len(table), 1))))

    @cached_property
    def stretches_table(self) -> Numbers:
        """See `Stretches.table`."""
        return self.stretches.table

    @cached_property
    def opened_table(self) -> Numbers:
        """The same of what is looked at of pairs that are opened: rows are blocks, the only part has no scales."""
        return table_of([self._opened] if self._opened else [], each=1)

    @cached_property
    def copies_table(self) -> Numbers:
        """The same of the copies: rows are positions, parts are keys and values."""
        return table_of(self._copies)

    def weigh_values(self, weights: Tensor, queries: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Values of the first blocks, as these queries would read them, summed by weights.

        Args:
            weights: (kv_heads, queries, blocks)
            queries: (kv_heads, queries, head_dim)
            pooled: bool (kv_heads or 1, queries, blocks), blocks of whole sections whose mean value stands for theirs

        Returns:
            (kv_heads, queries, head_dim)
        """
        if pooled is not None:
            assert self.sections is not None
            assert self.usual is not None
            whole = weights.shape[2] // SECTION * SECTION
            together = (weights * pooled)[..., :whole].unflatten(2, (-1, SECTION)).sum(-1)
            found = self.sections.weigh_values(together, self.usual.of_keys(queries))
            return self.weigh_values(weights * ~pooled, queries) + self.usual.widened(found)
        values = self._values.weigh(weights)
        if self.shape.slopes:
            values = values + self._slopes[1].weigh(weights * self.along(queries, weights.shape[2]))
        return values

    def along(self, queries: Tensor, count: int) -> Tensor:
        """Products of queries (kv_heads, queries, head_dim) with the first vectors of slopes, as `products` lie."""
        return self._slopes[0].scores(queries, count)

    def outlying(self, count: int) -> Tensor:
        """How badly the first `count` blocks are represented: (kv_heads, count)."""
        return self._outlying.rows(count)[..., 0]

    def copied(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of keys and of values of blocks (H, T, K), H being kv_heads: (H, T, K, positions, head_dim) each."""
        size = self.shape.copies[0]
        rows = (blocks[..., None] * size + torch.arange(size, device=blocks.device)).flatten(1)
        keys, values = (vectors.pick(rows).view(*blocks.shape, size, -1) for vectors in self._copies)
        return keys, values

    # -- to and from bytes -----------------------------------------------------------------------------------

    @property
    def _kept(self) -> list[tuple[Vectors | Centred, int]]:
        """All vectors that are in use, each with its rows per block."""
        return self._summaries + [(vectors, self.shape.copies[0]) for vectors in self._copies]

    @property
    def _summaries(self) -> list[tuple[Vectors | Centred, int]]:
        """Those that stand for a block, and are not its copy."""
        kept: list[tuple[Vectors | Centred, int]] = [(each, self.shape.landmarks) for each in self._landmarks]
        kept += [(self._values, 1)] * bool(self.shape.values)
        kept += [(vectors, 1) for vectors in self._slopes]
        return kept + [(self._outlying, 1)] * self.shape.outlying

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, packed."""
        return sum(rows * vectors.row_bytes for vectors, rows in self._kept)

    def pack(self, first: int, last: int) -> Bytes:
        """What is kept of blocks first, …, last - 1: (blocks, block_bytes)."""
        parts = [vectors.pack(first * rows, last * rows) for vectors, rows in self._kept]
        return np.concatenate([part.reshape(last - first, -1) for part in parts], axis=1)

    def _parts(self, packed: Bytes) -> Iterator[tuple[Vectors | Centred, Bytes]]:
        """All vectors that are in use, each with its rows of packed blocks."""
        start = 0
        for vectors, rows in self._kept:
            end = start + rows * vectors.row_bytes
            yield vectors, packed[:, start:end].reshape(len(packed) * rows, vectors.row_bytes)
            start = end

    def sensible(self, packed: Bytes) -> bool:
        """Whether bytes (blocks, block_bytes) are what `pack` can have given."""
        return all(vectors.sensible(mine) for vectors, mine in self._parts(packed))

    def unpack(self, packed: Bytes) -> None:
        """Append blocks as `pack` gave them, all or none."""
        with self._wholly():
            for vectors, mine in self._parts(packed) if len(packed) else ():
                vectors.unpack(mine)
            self.count += len(packed)
            self._gather()

    def fork(self, count: int, slab: Slab | None = None) -> BlockIndex:
        """An index of the first `count` blocks that shares their storage; it goes on in a slab of its own."""
        fork = BlockIndex(self._kv_heads, self.shape, self._meter, self._device, slab, self._stands_for)
        fork.count = count
        fork._landmarks = [vectors.fork(count * self.shape.landmarks, fork._slab) for vectors in self._landmarks]
        fork._values = self._values.fork(count if self.shape.values else 0, fork._slab)
        fork._slopes = [vectors.fork(count, fork._slab) for vectors in self._slopes]
        fork._outlying = self._outlying.fork(count if self.shape.outlying else 0)
        fork._copies = [vectors.fork(count * self.shape.copies[0], fork._slab) for vectors in self._copies]
        ready = fork._ready
        if count >= BEGINNING:
            fork._told = self._told
        fork.sections = self.sections and self.sections.fork(ready // SECTION, fork._slab)
        fork.pairs = self.pairs and self.pairs.fork(ready // SECTION * PAIRS, fork._slab)
        fork._opened = self._opened and self._opened.fork(ready, fork._slab)
        return fork
