"""Rows of numbers in 4 bits: how they are rounded, where each number lies, and their products on a CPU.

A row is rounded to -7 … 7 times a scale of its own. The numbers lie as a vector unit wants to eat them. A *slice* is 16
lanes of four bytes, a byte is two numbers, so a slice has 16 × 8 of them. Its lower halves are 64 numbers, and one
instruction multiplies four neighbours with four factors and adds them to a lane; so are its upper halves. No sum across
lanes is ever needed. What a lane stands for differs by use:

- `ByRow`, to multiply with queries: lanes are 16 rows, a slice has 8 of their channels
- `ByChannel`, to add up by weights: lanes are 16 channels, a slice has 8 rows

How few rows from anywhere are multiplied with queries tells `cache.opened`.

Queries and weights are rounded to 8 bits, each query and each 64 weights with a scale of their own, so that products
are exact integers; what is lost is a tenth of what rounding the rows loses. Numbers: H heads, Q queries, N rows, D
channels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.compiling import kernels
from cache.layout import Bytes
from cache.pages import zero_bytes
from cache.rows import CPU, Rows, Take

LANES, BYTES, HALVES = 16, 4, 2
DEEP = BYTES * HALVES
"""Numbers of a lane in a slice."""
LARGEST = 7
SCALE_BYTES = 4
Words = NDArray[np.uint8]
Small = NDArray[np.int8]
Numbers = NDArray[np.int64]
Floats = NDArray[np.float32]


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (H, N, D) as int8 numbers from -7 to 7, and a scale for each row (H, N)."""
    scales = rows.abs().amax(-1) / rows.new_full((), LARGEST)  # by a plain number a GPU multiplies with its inverse
    numbers = (rows / scales.clamp(min=torch.finfo(scales.dtype).tiny)[..., None]).round()
    return numbers.to(torch.int8), scales


def scales_of(packed: Bytes, heads: int) -> Floats:
    """The scales (N, heads) of packed rows, which stand behind their numbers."""
    return np.ascontiguousarray(packed[:, packed.shape[1] - heads * SCALE_BYTES :]).view(np.float32)


class FourBits(Rows):
    """Rows in 4 bits on a CPU; see `ByRow` and `ByChannel`. There must be room for a multiple of 16 of them."""

    deep: int
    """Channels must be padded to a multiple of this."""

    def __init__(
        self, heads: int, capacity: int, width: int, take: Take = zero_bytes, device: torch.device = CPU
    ) -> None:
        assert device.type == "cpu", "elsewhere rows are `Packed`"
        self.capacity = capacity
        self._width = width
        self._padded = -(-width // self.deep) * self.deep
        shape = self._words_shape(heads)
        self.words: Words = take(math.prod(shape)).reshape(shape)
        self.scales: Floats = take(SCALE_BYTES * heads * capacity).view(np.float32).reshape(heads, capacity)
        self.addresses = self.words.ctypes.data, self.scales.ctypes.data

    def _words_shape(self, heads: int) -> tuple[int, ...]:
        raise NotImplementedError

    def _get(self, first: int, last: int) -> Small:
        """Numbers (H, N, padded width) of rows first, …, last - 1."""
        return self._pick(np.arange(len(self.scales))[:, None], np.arange(first, last)[None])

    @staticmethod
    def row_bytes(heads: int, width: int) -> int:
        return heads * (-(-width // 2) + SCALE_BYTES)

    def _pick(self, heads: Numbers, at: Numbers) -> Small:
        """Numbers (H, N, padded width) of rows `at` (H or 1, N) of heads (H, 1)."""
        raise NotImplementedError

    def largest(self, count: int) -> Tensor:
        return torch.from_numpy(self.scales[:, :count] * np.float32(LARGEST))

    def pick(self, numbers: Tensor) -> Tensor:
        heads, at = np.arange(len(numbers))[:, None], numbers.numpy()
        return torch.from_numpy(self._pick(heads, at)[..., : self._width] * self.scales[heads, at, None])

    def put(self, first: int, rows: Tensor) -> None:
        self._round(np.ascontiguousarray(rows.numpy(), np.float32), first)

    def _round(self, rows: Floats, first: int) -> None:
        """Write rows as `rounded` makes numbers of them; lanes are rows."""
        kernels("rounding").put_by_row(rows, self.words, self.scales, first)

    def rows(self, last: int, first: int = 0) -> Tensor:
        found = np.empty((len(self.scales), last - first, self._width), np.float32)
        self._widen(first, found)
        return torch.from_numpy(found)

    def _widen(self, first: int, to: Floats) -> None:
        """Rows first, first + 1, … as they are kept, to (H, N, D)."""
        last = first + to.shape[1]
        to[:] = self._get(first, last)[..., : self._width] * self.scales[:, first:last, None]

    def pack(self, first: int, last: int) -> Bytes:
        numbers = self._get(first, last)[..., : self._width].transpose(1, 0, 2)  # (N, H, D)
        if self._width % 2:
            numbers = np.pad(numbers, ((0, 0), (0, 0), (0, 1)))
        nibbles = numbers.view(np.uint8) & 15
        halves = (nibbles[..., ::2] | nibbles[..., 1::2] << 4).reshape(last - first, -1)
        scales = np.ascontiguousarray(self.scales[:, first:last].T).view(np.uint8)
        return np.concatenate((halves, scales), axis=1)

    @staticmethod
    def sensible(packed: Bytes, heads: int) -> bool:
        scales = scales_of(packed, heads)
        return bool((np.isfinite(scales) & (scales >= 0)).all())

    def unpack(self, first: int, packed: Bytes) -> None:
        self.scales[:, first : first + len(packed)] = scales_of(packed, len(self.scales)).T
        self._unpack(np.ascontiguousarray(packed), first)

    def _unpack(self, packed: Bytes, first: int) -> None:
        """Write the numbers of packed rows; lanes are rows."""
        kernels("rounding").unpack_by_row(packed, self._width, self.words, first)


class ByRow(FourBits):
    """To multiply with queries: lanes are rows. Words (H, N / 16, D / 8, 16, 4)."""

    deep = DEEP

    def _words_shape(self, heads: int) -> tuple[int, ...]:
        return heads, self.capacity // LANES, self._padded // DEEP, LANES, BYTES

    def _widen(self, first: int, to: Floats) -> None:
        kernels("rounding").rows_by_row(self.words, self.scales, first, to)

    def _pick(self, heads: Numbers, at: Numbers) -> Small:
        tiles, lanes = np.divmod(at, LANES)
        words = self.words.swapaxes(2, 3)[heads, tiles, lanes]  # (H, N, slices, bytes)
        return signed(np.stack((words & 15, words >> 4), axis=-2)).reshape(*words.shape[:2], -1)

    def products(self, queries: Tensor, count: int, found: Tensor, start: int, heads: slice) -> None:
        arrays = (queries.numpy(), self.words, self.scales, found.numpy())
        kernels("four_bit").multiply(*arrays, start, count, heads.start, heads.stop)


class ByChannel(FourBits):
    """To add up by weights: lanes are channels. Words (H, N / 8, D / 16, 16, 4)."""

    deep = LANES

    def _words_shape(self, heads: int) -> tuple[int, ...]:
        return heads, self.capacity // DEEP, self._padded // LANES, LANES, BYTES

    def _round(self, rows: Floats, first: int) -> None:
        kernels("rounding").put_by_channel(rows, self.words, self.scales, first)

    def _widen(self, first: int, to: Floats) -> None:
        kernels("rounding").rows_by_channel(self.words, self.scales, first, to)

    def _unpack(self, packed: Bytes, first: int) -> None:
        kernels("rounding").unpack_by_channel(packed, self._width, self.words, first)

    def _pick(self, heads: Numbers, at: Numbers) -> Small:
        words = self.words[heads, at // DEEP, :, :, at % BYTES]  # (H, N, groups, lanes)
        nibbles = words >> (4 * (at % DEEP // BYTES)).astype(np.uint8)[..., None, None] & 15
        return signed(nibbles.astype(np.uint8)).reshape(*words.shape[:2], -1)

    def add_up(self, weights: Tensor, count: int, sums: Tensor, start: int, heads: slice) -> None:
        arrays = (weights.numpy(), self.words, self.scales, sums.numpy())
        kernels("four_bit").add_up(*arrays, start, count, heads.start, heads.stop)


def signed(nibbles: Bytes) -> Small:
    """Four bits as numbers from -8 to 7."""
    return np.right_shift((nibbles << 4).view(np.int8), 4)
