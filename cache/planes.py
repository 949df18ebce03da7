"""Rows in 4 bits that lie as two halves: what the upper two bits of each number say can be read by itself.

A number from -7 to 7 plus 8 is 4 * upper + lower. Both halves lie as `cache.four_bits` lets rows lie, lanes being rows,
with four numbers in a byte. A *glance* at rows reads the upper halves alone and takes the middle for the lower ones: of
a product with a query it tells most, and how far off it may well be. Scales are kept in bf16: rows become
`coarse`. Letters as in `cache.four_bits`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from cache.compiling import kernels
from cache.four_bits import BYTES, LANES, LARGEST, Floats, FourBits, Numbers, Small, Words, scales_of
from cache.layout import Bytes
from cache.pages import zero_bytes
from cache.rows import CPU, Take

FIELDS = 4
"""Numbers of a byte."""
SHIFTS = np.arange(0, 2 * FIELDS, 2, dtype=np.uint8)[:, None]
"""Of the bits of each number of a byte, for (…, fields, bytes)."""
MIDDLE = 6.5
"""What is taken from 4 * upper: the 8 that a number is too large by, less the mean of what lower halves can be."""
DOUBT = 2 * math.sqrt(1.25)
"""Two deviations of what a lower half may be, all of 0, …, 3 being as likely."""


def coarse(rows: Tensor) -> Tensor:
    """Rows (…, D) in 4 bits, in fp32, of the least scales in bf16 that bear them; such rows stay as they are."""
    scales = (rows.abs().amax(-1, keepdim=True) / rows.new_full((), LARGEST)).contiguous()  # as `rounded`
    scales = (((scales.view(torch.int32) + 0xFFFF) >> 16) << 16).view(torch.float32)
    return (rows / scales.clamp(min=torch.finfo(scales.dtype).tiny)).round() * scales


class Planes(FourBits):
    """To multiply with queries. Words (H, N / 16, D / 16, 16, 4), twice."""

    deep = FIELDS * BYTES
    scale = np.dtype(np.uint16)

    def __init__(
        self, heads: int, capacity: int, width: int, take: Take = zero_bytes, device: torch.device = CPU
    ) -> None:
        super().__init__(heads, capacity, width, take, device)
        self.lower: Words = take(self.words.size).reshape(self.words.shape)
        self.addresses = (*self.addresses, self.lower.ctypes.data)

    def _words_shape(self, heads: int) -> tuple[int, ...]:
        return heads, self.capacity // LANES, self._padded // self.deep, LANES, BYTES

    def _round(self, rows: Floats, first: int) -> None:
        kernels("rounding").put_planes(rows, self.words, self.lower, self.scales, first)

    def _scales(self, heads: slice | Numbers, at: slice | Numbers) -> Floats:
        return (self.scales[heads, at].astype(np.uint32) << 16).view(np.float32)

    @staticmethod
    def sensible(packed: Bytes, heads: int) -> bool:
        return FourBits.sensible(packed, heads) and not (scales_of(packed, heads).view(np.uint32) & 0xFFFF).any()

    def _put_scales(self, first: int, scales: Floats) -> None:
        bits = np.ascontiguousarray(scales).view(np.uint32)
        assert not (bits & 0xFFFF).any(), "these scales would be others"
        self.scales[:, first : first + scales.shape[1]] = bits >> 16

    def _put(self, first: int, numbers: Small) -> None:
        raised = (numbers + 8).view(np.uint8).reshape(*numbers.shape[:2], -1, FIELDS, BYTES)
        tiles, lanes = np.divmod(np.arange(first, first + numbers.shape[1]), LANES)
        for words, half in ((self.words, raised >> 2), (self.lower, raised & 3)):
            words.swapaxes(2, 3)[:, tiles, lanes] = np.bitwise_or.reduce(half << SHIFTS, axis=-2)

    def _pick(self, heads: Numbers, at: Numbers) -> Small:
        upper, lower = (self._halves(words, heads, at) for words in (self.words, self.lower))
        raised: Small = (upper << 2 | lower).view(np.int8)
        return raised - np.int8(8)

    @staticmethod
    def _halves(words: Words, heads: Numbers, at: Numbers) -> Bytes:
        """Two bits each (H, N, padded width) of rows `at` of heads."""
        tiles, lanes = np.divmod(at, LANES)
        mine: Bytes = words.swapaxes(2, 3)[heads, tiles, lanes][..., None, :] >> SHIFTS & np.uint8(3)
        return mine.reshape(*mine.shape[:2], -1)

    def products(self, queries: Tensor, count: int, found: Tensor, start: int, heads: slice) -> None:
        arrays = (queries.numpy(), self.words, self.lower, self.scales, found.numpy())
        kernels("plane").multiply(*arrays, start, count, heads.start, heads.stop)

    def glances(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Products of queries (H, Q, D) with the first rows at a glance, and how far off they may well be (H, Q, N)."""
        likely, doubt = np.empty((*queries.shape[:2], count), np.float32), np.empty(queries.shape[:2], np.float32)
        kernels("plane").glance(queries.contiguous().numpy(), self.words, self.scales, likely, doubt, count)
        scales = self._scales(slice(None), slice(count))
        return torch.from_numpy(likely), torch.from_numpy(doubt[..., None] * scales[:, None])
