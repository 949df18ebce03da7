"""Rows in 4 bits where no kernel of ours runs: as they are packed for the disk, and multiplied piece by piece.

The numbers are those of `cache.four_bits`, two in a byte, so an index means the same on every device. What is
multiplied is widened to fp32 first, in pieces that stay small beside the index.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cache.four_bits import LARGEST, FourBits, rounded, scales_of
from cache.layout import Bytes
from cache.pages import zero_bytes
from cache.rows import CPU, Rows, Take, each_head

PIECE_BYTES = 32 << 20
"""Of widened rows at once."""


class Packed(Rows):
    """Arguments as those of `Rows`."""

    def __init__(
        self, heads: int, capacity: int, width: int, take: Take = zero_bytes, device: torch.device = CPU
    ) -> None:
        self.capacity = capacity
        self._width = width
        self._halves = torch.zeros(heads, capacity, -(-width // 2), dtype=torch.uint8, device=device)
        self._scales = torch.zeros(heads, capacity, device=device)

    @staticmethod
    def row_bytes(heads: int, width: int) -> int:
        return heads * (-(-width // 2) + torch.float32.itemsize)

    def put(self, first: int, rows: Tensor) -> None:
        numbers, scales = rounded(rows)
        nibbles = numbers & 15  # (H, N, D) int8, the lower half of each byte
        if self._width % 2:
            nibbles = torch.nn.functional.pad(nibbles, (0, 1))
        halves = nibbles[..., ::2] | (nibbles[..., 1::2] << 4)
        self._halves[:, first : first + rows.shape[1]] = halves.view(torch.uint8)
        self._scales[:, first : first + rows.shape[1]] = scales

    def rows(self, last: int, first: int = 0) -> Tensor:
        return self._widened(slice(first, last), slice(None))

    def largest(self, count: int) -> Tensor:
        return self._scales[:, :count] * LARGEST

    def pick(self, numbers: Tensor) -> Tensor:
        return self._widened(numbers, each_head(numbers))

    def _widened(self, rows: slice | Tensor, heads: slice | Tensor) -> Tensor:
        """Some rows of some heads, or rows (H, N) of heads (H, 1), in fp32 (H, N, D)."""
        signed = self._halves[heads, rows].view(torch.int8)  # shifts of these keep the sign
        numbers = torch.stack(((signed << 4) >> 4, signed >> 4), dim=-1).flatten(-2)[..., : self._width]
        return numbers * self._scales[heads, rows, None]

    def _pieces(self, count: int, heads: slice) -> Iterator[tuple[slice, Tensor]]:
        """The first rows of some heads in fp32, piece by piece."""
        size = max(1, PIECE_BYTES // (len(self._halves[heads]) * self._width * torch.float32.itemsize))
        for start in range(0, count, size):
            rows = slice(start, min(count, start + size))
            yield rows, self._widened(rows, heads)

    def pack(self, first: int, last: int) -> Bytes:
        halves, scales = (x[:, first:last].transpose(0, 1).flatten(1) for x in (self._halves, self._scales))
        return torch.cat((halves, scales.contiguous().view(torch.uint8)), dim=1).cpu().numpy()

    sensible = FourBits.sensible

    def unpack(self, first: int, packed: Bytes) -> None:
        heads, last = len(self._scales), first + len(packed)
        border = packed.shape[1] - heads * torch.float32.itemsize
        halves, scales = np.ascontiguousarray(packed[:, :border]), scales_of(packed, heads)
        there = self._scales.device
        halves_there = torch.from_numpy(halves).to(there).unflatten(1, (heads, -1))
        self._halves[:, first:last] = halves_there.transpose(0, 1)
        self._scales[:, first:last] = torch.from_numpy(scales).to(there).T

    def products(self, queries: Tensor, count: int, found: Tensor, start: int, heads: slice) -> None:
        for rows, widened in self._pieces(count, heads):
            found[heads, :, start + rows.start : start + rows.stop] = queries[heads] @ widened.mT

    def add_up(self, weights: Tensor, count: int, sums: Tensor, start: int, heads: slice) -> None:
        for rows, widened in self._pieces(count, heads):
            sums[heads] += weights[heads, :, start + rows.start : start + rows.stop] @ widened
