"""What is looked at of a pair of blocks that is opened, in one piece of memory: what lies anywhere waits for its page.

A *record* holds, of both blocks, mean and slope in 4 bits, each of these four rows with its scale, and the sizes of
what is left of their variances. Numbers of the four rows lie as one instruction wants to eat them: a slice of 32
channels is 64 bytes, in which each row has 16, whose lower halves are 16 channels and whose upper halves the next ones.
Letters in shapes: H KV heads, N blocks, P pairs, D channels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.compiling import kernels
from cache.four_bits import DEEP, LANES, signed
from cache.layout import Bytes
from cache.pages import zero_bytes
from cache.rows import CPU, Rows, Take
from cache.sections import PAIR

ROWS = 2
"""Of a block: its mean and its slope."""
WIDE = PAIR * ROWS * DEEP
"""Channels of a slice."""
BORDER = 32
"""Bytes of which a record takes a multiple: half a line, so it lies in no more lines than if it began with one, where
the first one begins at such a border."""


def record_bytes(channels: int) -> int:
    """Bytes of a record."""
    words = (channels + WIDE - 1) // WIDE * PAIR * ROWS * LANES
    return (words + 4 * PAIR * (ROWS + 1) + BORDER - 1) // BORDER * BORDER


def record(channels: int) -> np.dtype[np.void]:
    """How a record lies."""
    words, scales = (-(-channels // WIDE), PAIR, ROWS, LANES), (PAIR, ROWS)
    begin = math.prod(words)
    return np.dtype({
        "names": ["words", "scales", "sizes"],
        "formats": [(np.uint8, words), (np.float32, scales), (np.float32, PAIR)],
        "offsets": [0, begin, begin + 4 * PAIR * ROWS],
        "itemsize": record_bytes(channels),
    })  # fmt: skip


class Opened(Rows):
    """Rows of blocks: mean, slope, and one number, the size (2 D + 1,). On a CPU only; room is for whole pairs."""

    def __init__(
        self, heads: int, capacity: int, width: int, take: Take = zero_bytes, device: torch.device = CPU
    ) -> None:
        assert device.type == "cpu", "elsewhere no kernel opens pairs"
        self.capacity = capacity
        self._channels = width // ROWS
        kind, count = record(self._channels), heads * capacity // PAIR
        self._records: NDArray[np.void] = take(count * kind.itemsize).view(kind).reshape(heads, -1)
        self.addresses = (self._records.ctypes.data,)

    @staticmethod
    def row_bytes(heads: int, width: int) -> int:
        return heads * record_bytes(width // ROWS) // PAIR

    def put(self, first: int, rows: Tensor) -> None:
        parts = (self._records[name] for name in ("words", "scales", "sizes"))
        kernels("rounding").put_opened(np.ascontiguousarray(rows.numpy(), np.float32), *parts, first)

    def rows(self, last: int, first: int = 0) -> Tensor:
        words, scales, sizes = self._parts(first, last)
        nibbles = np.stack((words & 15, words >> 4), -2)  # (N, H, slices, rows, halves, 16)
        numbers = signed(nibbles).swapaxes(2, 3).reshape(*scales.shape, -1)[..., : self._channels]
        known = (numbers * scales[..., None]).reshape(*sizes.shape, -1)
        return torch.from_numpy(np.concatenate((known, sizes[..., None]), -1).swapaxes(0, 1).copy())

    def _parts(self, first: int, last: int) -> tuple[Bytes, NDArray[np.float32], NDArray[np.float32]]:
        """Of blocks first, …, last - 1: words (N, H, slices, rows, 16), scales (N, H, rows) and sizes (N, H)."""
        pairs, places = np.divmod(np.arange(first, last), PAIR)
        mine = self._records[:, pairs]  # (H, N)
        each = np.arange(last - first)
        words, scales = mine["words"][:, each, :, places], mine["scales"][:, each, places].swapaxes(0, 1)
        return words, scales, mine["sizes"][:, each, places].T

    def pack(self, first: int, last: int) -> Bytes:
        parts = (np.ascontiguousarray(part).reshape(last - first, -1) for part in self._parts(first, last))
        return np.concatenate([part.view(np.uint8) for part in parts], axis=1)

    def unpack(self, first: int, packed: Bytes) -> None:
        count, kind = len(packed), self._records.dtype
        pairs, places = np.divmod(np.arange(first, first + count), PAIR)
        heads, slices = len(self._records), kind["words"].shape[0]
        borders = np.cumsum([heads * slices * ROWS * LANES, heads * ROWS * 4])
        words, scales, sizes = np.split(packed, borders, axis=1)
        self._records["words"][:, pairs, :, places] = words.reshape(count, heads, slices, ROWS, LANES)
        reals = (np.ascontiguousarray(part).view(np.float32) for part in (scales, sizes))
        self._records["scales"][:, pairs, places] = next(reals).reshape(count, heads, ROWS).swapaxes(0, 1)
        self._records["sizes"][:, pairs, places] = next(reals).T
