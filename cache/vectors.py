"""Vectors in rows 0, 1, 2, … that only grow: add some, multiply with all of them, fork.

Kept in 8 bits, each row has a scale of its own: its largest number is 127. Storage grows in segments of doubled sizes,
so nothing is copied to append; a fork reads its parent's segments and grows segments of its own. Knows neither blocks
nor what the vectors mean.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]

FIRST_SEGMENT, LARGEST_SEGMENT = 64, 8192
LARGEST = 127
"""Of the numbers that 8 bits hold."""


@dataclass(frozen=True)
class Segment:
    """Storage (kv_heads, capacity, width) of which the first `count` rows belong to these vectors.

    Attributes:
        scales: what to multiply each row with (kv_heads, capacity); None if rows are not kept in 8 bits
    """

    storage: Tensor
    scales: Tensor | None
    count: int

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
        return Segment(self.storage, self.scales, place.stop)

    def rows(self, count: int) -> Tensor:
        """The first rows (kv_heads, count, width): where they lie, or from 8 bits to fp32."""
        rows = self.storage[:, :count]
        return rows if self.scales is None else rows * self.scales[:, :count, None]


class Meter:
    """How many bytes tensors take that are still in use."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = threading.RLock()  # a tensor may end on any thread, in the middle of anything

    def watch(self, tensor: Tensor) -> None:
        """Count a tensor until nobody has it any more."""
        self._add(tensor.nbytes)
        weakref.finalize(tensor, self._add, -tensor.nbytes)

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
        self._meter = meter
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
            if self._meter is not None:
                self._meter.watch(storage)
            self._segments.append(Segment(storage, scales, 0))
            self._owned = True
        return self._segments[-1]

    def parts(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """The first `count` rows as (number of the first one, rows (kv_heads, some, width))."""
        assert count <= self.count, "more rows were asked for than there are"
        start = 0
        for segment in self._segments:
            taken = min(segment.count, count - start)
            if taken <= 0:
                break
            yield start, segment.rows(taken)
            start += taken

    def scores(self, queries: Tensor, count: int) -> Tensor:
        """Products of queries (kv_heads, queries, width) with the first `count` rows: (kv_heads, queries, count)."""
        scores = torch.empty((*queries.shape[:2], count), dtype=queries.dtype, device=queries.device)
        for start, rows in self.parts(count):
            torch.matmul(queries, rows.to(queries.dtype).mT, out=scores[:, :, start : start + rows.shape[1]])
        return scores

    def weigh(self, weights: Tensor) -> Tensor:
        """Sums of the first rows by weights (kv_heads, queries, count): (kv_heads, queries, width)."""
        heads, width, _ = self._shape
        sums = torch.zeros((heads, weights.shape[1], width), dtype=weights.dtype, device=weights.device)
        for start, rows in self.parts(weights.shape[2]):
            sums += weights[:, :, start : start + rows.shape[1]] @ rows.to(weights.dtype)
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
                fork._segments.append(Segment(segment.storage, segment.scales, taken))
                fork.count += taken
        assert fork.count == count, "cannot fork beyond what there is"
        return fork


def raw(rows: Tensor) -> Bytes:
    """Rows (rows, heads, width) as bytes (rows, …)."""
    return rows.contiguous().view(torch.uint8).flatten(1).numpy()
