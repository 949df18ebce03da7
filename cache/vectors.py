"""Vectors in rows 0, 1, 2, … that only grow: add some, multiply with all of them or add all up, fork.

Storage grows in segments of doubled sizes, so nothing is copied to append; a fork reads its parent's segments and grows
segments of its own. Knows neither blocks nor what the vectors mean.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.four_bits import FourBits
from cache.layout import Bytes
from cache.opened import Opened
from cache.pages import Slab, zero_bytes
from cache.parallel import over_heads
from cache.rows import CPU, Rows, each_head

Numbers = NDArray[np.int64]

FIRST_SEGMENT, MANY, LARGEST_SEGMENT = 64, 1024, 8192
"""All sizes are multiples of the first one, and so are the rows before a segment: kernels round 64 weights together,
and which ones must not depend on who shares storage with whom. Rows for `MANY` blocks or more lie in large pages, which
the first of them take whole: heads lie apart."""


@dataclass(frozen=True)
class Segment:
    """Storage of which the first `count` rows belong to these vectors.

    Attributes:
        use: is told how many bytes more of the storage are used
    """

    storage: Rows
    count: int
    use: Callable[[int], None]

    @property
    def room(self) -> int:
        return self.storage.capacity - self.count


class Meter:
    """How many bytes are used of storage that somebody still has: the system backs only what is written."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = threading.RLock()  # storage may end on any thread, in the middle of anything

    def watch(self, storage: object) -> Callable[[int], None]:
        """A function that counts bytes of storage when they come to be used; all until nobody has it any more."""
        used = 0

        def use(count: int) -> None:
            nonlocal used
            used += count
            self._add(count)

        weakref.finalize(storage, lambda: self._add(-used))
        return use

    def _add(self, count: int) -> None:
        with self._lock:
            self.bytes += count


class Vectors:
    """Rows of one session in one layer.

    Args:
        kv_heads: heads with rows of their own
        width: channels of a row
        storage: how rows are kept
        meter: counts their memory
        slab: where rows lie that are many
        device: whose memory they lie in
        stands_for: blocks that a row stands for
    """

    def __init__(
        self,
        kv_heads: int,
        width: int,
        storage: type[Rows] = Rows,
        meter: Meter | None = None,
        slab: Slab | None = None,
        device: torch.device = CPU,
        stands_for: int = 1,
    ) -> None:
        self._shape = (kv_heads, width)
        self._storage = storage
        self._slab = slab or Slab()
        self._device = device
        self._meter = meter or Meter()
        self._segments: list[Segment] = []
        self._owned = False
        self._stands_for = stands_for
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """Append rows (kv_heads, rows, width)."""
        self._append(rows.shape[1], lambda storage, place, inside: storage.put(place, rows[:, inside]))

    def _append(self, count: int, put: Callable[[Rows, int, slice], None]) -> None:
        """Append `count` rows: `put` writes a slice of them at a place of the storage."""
        start = 0
        while start < count:
            last = self._open_segment()
            inside = slice(start, min(start + last.room, count))
            taken = inside.stop - start
            put(last.storage, last.count, inside)
            if self._backed_when_written:
                last.use(taken * self.row_bytes)
            self._segments[-1] = Segment(last.storage, last.count + taken, last.use)
            start = inside.stop
        self.count += count

    def _open_segment(self) -> Segment:
        """A segment of our own with room: the last one, or a new one twice as large; a fork's first one is small."""
        if not self._owned or not self._segments[-1].room:
            capacity = 2 * self._segments[-1].storage.capacity if self._owned else FIRST_SEGMENT
            capacity = min(capacity, LARGEST_SEGMENT)
            take = self._slab.take if capacity * self._stands_for >= MANY else zero_bytes
            storage = self._storage(self._shape[0], capacity, self._shape[1], take, self._device)
            use = self._meter.watch(storage)
            if not self._backed_when_written:
                use(capacity * self.row_bytes)
            self._segments.append(Segment(storage, self._take_over(storage, use), use))
            self._owned = True
        return self._segments[-1]

    @property
    def _backed_when_written(self) -> bool:
        """Whether storage takes memory row by row; a device gives it all at once."""
        return self._device.type == "cpu"

    def _take_over(self, storage: Rows, use: Callable[[int], None]) -> int:
        """Move the rows behind a border of 64, which others share, to the storage that goes on; how many there are."""
        left = 0 if self._owned else self.count % FIRST_SEGMENT
        if left:
            last = self._segments.pop()
            storage.unpack(0, last.storage.pack(last.count - left, last.count))
            if self._backed_when_written:
                use(left * self.row_bytes)
            if last.count > left:
                self._segments.append(Segment(last.storage, last.count - left, last.use))
        return left

    def _until(self, count: int) -> list[tuple[Rows, int]]:
        """The storage of the first `count` rows, each with how many of its rows."""
        assert count <= self.count, "more rows were asked for than there are"
        pieces, left = [], count
        for segment in self._segments:
            if left <= 0:
                break
            pieces.append((segment.storage, min(segment.count, left)))
            left -= segment.count
        return pieces

    def rows(self, last: int, first: int = 0) -> Tensor:
        """Rows first, …, last - 1 as they are kept, in fp32: (kv_heads, rows, width)."""
        heads, width = self._shape
        parts, start = [torch.empty(heads, 0, width, device=self._device)], 0
        for rows, taken in self._until(last):
            if first < start + taken:
                parts.append(rows.rows(taken, max(0, first - start)))
            start += taken
        return torch.cat(parts, 1)

    def largest(self, count: int) -> Tensor:
        """The largest number of each of the first rows, whatever its sign (kv_heads, rows)."""
        return torch.cat([rows.largest(taken) for rows, taken in self._until(count)], 1)

    def pick(self, numbers: Tensor) -> Tensor:
        """Rows of such numbers, each head its own (kv_heads, rows), in fp32: (kv_heads, rows, width)."""
        if numbers.shape[1] > self.count:  # widening each row once is less work
            return self.rows(self.count)[each_head(numbers), numbers]
        found = torch.empty(*numbers.shape, self._shape[1], device=self._device)
        start = 0
        for segment in self._segments:
            inside = (numbers >= start) & (numbers < start + segment.count)
            taken = segment.storage.pick((numbers - start).clamp(0, segment.count - 1))
            found = torch.where(inside[..., None], taken, found)
            start += segment.count
        return found

    def scores(self, queries: Tensor, count: int) -> Tensor:
        """Products of queries (kv_heads, queries, width) with the first `count` rows: (kv_heads, queries, count)."""
        queries, found = queries.contiguous(), torch.empty(*queries.shape[:2], count, device=self._device)
        self._over_heads(lambda heads: self.fill(queries, found, heads), len(found), found[0].numel())
        return found

    def _over_heads(self, work: Callable[[slice], None], heads: int, each: int) -> None:
        """`over_heads` on a CPU; a device has threads of its own."""
        if self._device.type == "cpu":
            over_heads(work, heads, each)
        else:
            work(slice(0, heads))

    def fill(self, queries: Tensor, found: Tensor, heads: slice) -> None:
        """Fill found (kv_heads, queries, rows) with products of queries and rows, both contiguous, for such heads."""
        start = 0
        for rows, taken in self._until(found.shape[2]):
            rows.products(queries, taken, found, start, heads)
            start += taken

    def weigh(self, weights: Tensor) -> Tensor:
        """Sums of the first rows by weights (kv_heads, queries, count): (kv_heads, queries, width)."""
        weights = weights.contiguous()
        sums = torch.zeros(*weights.shape[:2], self._shape[1], device=self._device)
        self._over_heads(lambda heads: self.add_up(weights, sums, heads), len(sums), weights[0].numel())
        return sums

    def add_up(self, weights: Tensor, sums: Tensor, heads: slice) -> None:
        """Add rows, times weights (kv_heads, queries, rows), to sums (kv_heads, queries, width), for such heads."""
        start = 0
        for rows, taken in self._until(weights.shape[2]):
            rows.add_up(weights, taken, sums, start, heads)
            start += taken

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Where the rows lie, one after the other."""
        return tuple(self._segments)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all heads."""
        return self._storage.row_bytes(*self._shape)

    def pack(self, first: int, last: int) -> Bytes:
        """Rows first, …, last - 1 as they are kept: (rows, row_bytes)."""
        parts, start = [], 0
        for segment in self._segments:
            inside = slice(max(0, first - start), min(segment.count, last - start))
            if inside.start < inside.stop:
                parts.append(segment.storage.pack(inside.start, inside.stop))
            start += segment.count
        return np.concatenate(parts) if parts else np.empty((0, self.row_bytes), np.uint8)

    def sensible(self, packed: Bytes) -> bool:
        """Whether bytes (N, row_bytes) are what `pack` can have given."""
        return self._storage.sensible(packed, self._shape[0])

    def unpack(self, packed: Bytes) -> None:
        """Append rows as `pack` gave them."""
        self._append(len(packed), lambda storage, place, inside: storage.unpack(place, packed[inside]))

    def fork(self, count: int, slab: Slab | None = None) -> Vectors:
        """Vectors that are the first `count` rows and share their storage; they go on in a slab of their own."""
        fork = Vectors(*self._shape, self._storage, self._meter, slab, self._device, self._stands_for)
        for segment in self._segments:
            taken = min(segment.count, count - fork.count)
            if taken > 0:
                fork._segments.append(Segment(segment.storage, taken, segment.use))
                fork.count += taken
        assert fork.count == count, "cannot fork beyond what there is"
        return fork


def table_of(parts: Sequence[Vectors], each: int = 2) -> Numbers:
    """See `BlockIndex.table`; each part has so many addresses."""
    segments = zip(*(vectors.segments for vectors in parts), strict=True)
    return np.array([addresses(pieces) for pieces in segments], np.int64).reshape(-1, 2 + each * len(parts))


def addresses(pieces: tuple[Segment, ...]) -> list[int]:
    """A row of `BlockIndex.table`: the same segment of all parts."""
    row = [pieces[0].storage.capacity, pieces[0].count]
    for piece in pieces:
        assert isinstance(piece.storage, (FourBits, Opened))
        assert [piece.storage.capacity, piece.count] == row[:2], "parts grow together"
        row += piece.storage.addresses
    return row
