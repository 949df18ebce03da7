"""Vectors in rows 0, 1, 2, … that only grow: add some, multiply with all of them, fork.

Kept in 8 bits, each row has a scale of its own: its largest number is 127. Storage grows in segments of doubled sizes,
so nothing is copied to append; a fork reads its parent's segments and grows segments of its own. Knows neither blocks
nor what the vectors mean.
"""

from __future__ import annotations

import functools
import importlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from cache.layout import Bytes

FIRST_SEGMENT, LARGEST_SEGMENT = 64, 8192
FEW = 16
"""Up to so many queries the kernels are faster than fp32 rows and a matrix product."""
LARGEST = 127
"""Of the numbers that 8 bits hold."""


@dataclass(frozen=True)
class Segment:
    """Storage (kv_heads, capacity, width) of which the first `count` rows belong to these vectors.

    Attributes:
        scales: what to multiply each row with (kv_heads, capacity); None if rows are not kept in 8 bits
        use: is told how many bytes more of the storage are used
    """

    storage: Tensor
    scales: Tensor | None
    count: int
    use: Callable[[int], None]

    @property
    def room(self) -> int:
        return self.storage.shape[1] - self.count

    def put(self, rows: Tensor, scales: Tensor | None) -> Segment:
        """This segment with further rows (kv_heads, some, width), and their scales, behind its own."""
        place = slice(self.count, self.count + rows.shape[1])
        self.storage[:, place] = rows
        if self.scales is not None:
            assert scales is not None
            self.scales[:, place] = scales
        self.use(rows.shape[1] * self.storage[:, 0].nbytes)
        return Segment(self.storage, self.scales, place.stop, self.use)

    def rows(self, count: int) -> Tensor:
        """The first rows (kv_heads, count, width): where they lie, or from 8 bits to fp32."""
        rows = self.storage[:, :count]
        return rows if self.scales is None else rows * self.scales[:, :count, None]

    def products(self, queries: Tensor, count: int) -> Tensor:
        """Queries (kv_heads, queries, width) times the first rows: (kv_heads, queries, count)."""
        if self.scales is not None and few(queries):
            return kernels().products(queries, self.storage, self.scales, count)
        return queries @ self.rows(count).to(queries.dtype).mT

    def weighted(self, weights: Tensor) -> Tensor:
        """Sums of the first rows by weights (kv_heads, queries, rows): (kv_heads, queries, width)."""
        if self.scales is not None and few(weights):
            return kernels().weighted(weights, self.storage, self.scales)
        return weights @ self.rows(weights.shape[2]).to(weights.dtype)


class Meter:
    """How many bytes are used of tensors that somebody still has: the system backs only what is written."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = threading.RLock()  # a tensor may end on any thread, in the middle of anything

    def watch(self, tensor: Tensor) -> Callable[[int], None]:
        """A function that counts bytes of a tensor when they come to be used; all until nobody has it any more."""
        used = 0

        def use(count: int) -> None:
            nonlocal used
            used += count
            self._add(count)

        weakref.finalize(tensor, lambda: self._add(-used))
        return use

    def _add(self, count: int) -> None:
        with self._lock:
            self.bytes += count


class Vectors:
    """Rows of one session in one layer.

    Args:
        kv_heads: heads with rows of their own
        width: channels of a row
        dtype: of the stored rows; int8 rounds them
        meter: counts their memory
    """

    def __init__(
        self, kv_heads: int, width: int, dtype: torch.dtype = torch.float32, meter: Meter | None = None
    ) -> None:
        self._shape = (kv_heads, width, dtype)
        self._meter = meter or Meter()
        self._segments: list[Segment] = []
        self._owned = False
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """Append rows (kv_heads, rows, width)."""
        scales = None
        if self._shape[2] == torch.int8:
            scales = rows.abs().amax(-1) / LARGEST  # (kv_heads, rows)
            rows = (rows / scales.clamp(min=torch.finfo(scales.dtype).tiny)[..., None]).round()
        self._append(rows, scales)

    def _append(self, rows: Tensor, scales: Tensor | None) -> None:
        start = 0
        while start < rows.shape[1]:
            last = self._open_segment(rows.device)
            inside = slice(start, start + last.room)
            self._segments[-1] = last.put(rows[:, inside], None if scales is None else scales[:, inside])
            start += last.room
        self.count += rows.shape[1]

    def _open_segment(self, device: torch.device) -> Segment:
        """A segment of our own with room: the last one, or a new one twice as large as it."""
        if not self._owned or not self._segments[-1].room:
            heads, width, dtype = self._shape
            largest = max((s.storage.shape[1] for s in self._segments), default=FIRST_SEGMENT // 2)
            capacity = min(2 * largest, LARGEST_SEGMENT)
            storage = torch.empty((heads, capacity, width), dtype=dtype, device=device)
            scales = torch.empty((heads, capacity), device=device) if dtype == torch.int8 else None
            self._segments.append(Segment(storage, scales, 0, self._meter.watch(storage)))
            self._owned = True
        return self._segments[-1]

    def parts(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """The first `count` rows as (number of the first one, rows (kv_heads, some, width))."""
        for start, segment, taken in self._until(count):
            yield start, segment.rows(taken)

    def _until(self, count: int) -> Iterator[tuple[int, Segment, int]]:
        """The segments of the first `count` rows: number of the first one, segment, how many of its rows."""
        assert count <= self.count, "more rows were asked for than there are"
        start = 0
        for segment in self._segments:
            taken = min(segment.count, count - start)
            if taken <= 0:
                break
            yield start, segment, taken
            start += taken

    def scores(self, queries: Tensor, count: int) -> Tensor:
        """Products of queries (kv_heads, queries, width) with the first `count` rows: (kv_heads, queries, count)."""
        pieces = [segment.products(queries, taken) for _, segment, taken in self._until(count)]
        if not pieces:
            return queries.new_empty((*queries.shape[:2], 0))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)

    def weigh(self, weights: Tensor) -> Tensor:
        """Sums of the first rows by weights (kv_heads, queries, count): (kv_heads, queries, width)."""
        heads, width, _ = self._shape
        sums = torch.zeros((heads, weights.shape[1], width), dtype=weights.dtype, device=weights.device)
        for start, segment, taken in self._until(weights.shape[2]):
            sums += segment.weighted(weights[:, :, start : start + taken])
        return sums

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all heads, packed."""
        heads, width, dtype = self._shape
        return heads * (width * dtype.itemsize + (torch.float32.itemsize if dtype == torch.int8 else 0))

    def pack(self, first: int, last: int) -> Bytes:
        """Rows first, …, last - 1 as they are stored: (rows, row_bytes)."""
        parts, start = [], 0
        for segment in self._segments:
            inside = slice(max(0, first - start), min(segment.count, last - start))
            if inside.start < inside.stop:
                kept = [segment.storage] if segment.scales is None else [segment.storage, segment.scales[..., None]]
                parts.append(np.concatenate([raw(x[:, inside].transpose(0, 1)) for x in kept], axis=1))
            start += segment.count
        return np.concatenate(parts) if parts else np.empty((0, self.row_bytes), np.uint8)

    def unpack(self, packed: Bytes) -> None:
        """Append rows as `pack` gave them."""
        heads, width, dtype = self._shape
        size = heads * width * dtype.itemsize
        rows = (
            torch.from_numpy(np.ascontiguousarray(packed[:, :size])).view(dtype).view(-1, heads, width).transpose(0, 1)
        )
        scales = None
        if dtype == torch.int8:
            scales = torch.from_numpy(np.ascontiguousarray(packed[:, size:])).view(torch.float32).T
        self._append(rows, scales)

    def fork(self, count: int) -> Vectors:
        """Vectors that are the first `count` rows and share their storage."""
        fork = Vectors(*self._shape, self._meter)
        for segment in self._segments:
            taken = min(segment.count, count - fork.count)
            if taken > 0:
                fork._segments.append(Segment(segment.storage, segment.scales, taken, segment.use))
                fork.count += taken
        assert fork.count == count, "cannot fork beyond what there is"
        return fork


def few(queries: Tensor) -> bool:
    """Whether so few queries (kv_heads, queries, …) are better off with the kernels."""
    return queries.shape[1] <= FEW and queries.device.type == "cpu" and queries.dtype == torch.float32


@functools.cache
def kernels() -> ModuleType:
    """Loaded when they are first needed: Numba takes a second."""
    return importlib.import_module("cache.eight_bits")


def raw(rows: Tensor) -> Bytes:
    """Rows (rows, heads, width) as bytes (rows, …)."""
    return rows.contiguous().view(torch.uint8).flatten(1).numpy()
