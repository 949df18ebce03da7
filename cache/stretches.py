"""Rows of whole stretches once more, in an order of likeness: of what is alike only the likeliest has to be looked at.

A stretch is so many rows in a row. They are halved by the direction in which they scatter most, and the halves again,
until 16 are left: a *tile* of rows that are alike. A query looks at the means of tiles first, and opens those of which
a row may be among the best; these lie side by side. Which tiles there are follows from the stretch's rows as they are
kept, and what is opened from whole stretches alone, so what is added later changes nothing. Letters as in
`cache.four_bits`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.compiling import kernels
from cache.four_bits import LANES, ByRow
from cache.pages import Slab
from cache.parallel import over_heads
from cache.rows import CPU, Rows
from cache.vectors import Meter, Vectors

Numbers = NDArray[np.int64]
Order = NDArray[np.int32]
STRETCH = 4096
"""Rows, 256 times a power of two: of 1,024 tiles are less alike, and of the best rows a thirtieth less is found."""
OPENED, EACH = 8, 4
"""Of the tiles one in so many is opened, and so many at least for each block that is to be chosen."""
REACH = 1.5, 1.0
"""A tile's best row is expected so many deviations of its rows above its mean, and so many times as far as its furthest
row is off, if that were in any direction: what is unlike all others is in a tile with others."""
TURNS = 2
"""Times that the direction of a group of rows is bettered: more finds nothing more."""
WORK = 64
"""Products that a number of a row is worth when it is put in order."""


def opened(tiles: int, chosen: int) -> int:
    """How many of so many tiles are opened where so many blocks are to be chosen."""
    return min(tiles, max(tiles // OPENED, EACH * chosen))


@dataclass(frozen=True)
class Stretch:
    """Rows of all heads in tiles.

    Attributes:
        numbers: which of all rows a tile's are, in rising order (H, tiles, 16) int32
        means: of tiles, to multiply with queries (H, tiles, D)
        reaches: how far above its mean's a product of a tile's row may well be, for a query of length 1 (H, tiles)
        rows: in the order of `numbers` (H, tiles * 16, D), where kernels read them
    """

    numbers: Tensor
    means: Rows
    reaches: Tensor
    rows: ByRow | None

    @property
    def tiles(self) -> int:
        return self.numbers.shape[1]

    def likely(self, queries: Tensor) -> Tensor:
        """What the best product of each tile with queries (H, Q, D) may well be: (H, Q, tiles)."""
        found = torch.empty(*queries.shape[:2], self.tiles, device=queries.device)
        self.means.products(queries.contiguous(), self.tiles, found, 0, slice(0, len(queries)))
        return found + self.reaches[:, None] * queries.norm(dim=-1, keepdim=True)

    @property
    def addresses(self) -> list[int]:
        """Tiles, and where rows, their scales, means, theirs, reaches and numbers lie."""
        assert isinstance(self.means, ByRow)
        assert self.rows is not None
        return [
            self.tiles, *self.rows.addresses, *self.means.addresses, self.reaches.data_ptr(), self.numbers.data_ptr()
        ]  # fmt: skip


class Stretches:
    """Those of rows that grow. Arguments as those of `Vectors`."""

    def __init__(
        self,
        storage: type[Rows],
        meter: Meter | None = None,
        slab: Slab | None = None,
        device: torch.device = CPU,
    ) -> None:
        self._storage, self._device = storage, device
        self._meter, self._slab = meter or Meter(), slab or Slab()
        self.all: list[Stretch] = []

    @staticmethod
    def stretch_bytes(storage: type[Rows], heads: int, width: int) -> int:
        """Bytes of one."""
        each = storage.row_bytes(heads, width)
        copied = STRETCH * each if issubclass(storage, ByRow) else 0
        return copied + STRETCH // LANES * (each + 4 * heads) + STRETCH * 4 * heads

    @property
    def count(self) -> int:
        """Rows of all of them."""
        return STRETCH * len(self.all)

    @classmethod
    def row_bytes(cls, storage: type[Rows], heads: int, width: int) -> int:
        """Bytes that a row takes once more, with its part of what stands for tiles."""
        return -(-cls.stretch_bytes(storage, heads, width) // STRETCH)

    def follow(self, rows: Vectors, first: int) -> None:
        """Add the stretches that have become whole of rows first, first + 1, …."""
        while (start := self.count) + STRETCH <= rows.count:
            self._add(rows, start, first)

    def _add(self, rows: Vectors, start: int, first: int) -> None:
        """Append the one that begins at row `start` of these, of which row 0 is row `first` of all."""
        plain = rows.rows(start + STRETCH, start).cpu()  # (H, STRETCH, D)
        heads, count, width = plain.shape
        padded = torch.nn.functional.pad(plain, (0, -width % LANES)).numpy()
        order = np.empty((heads, count), np.int32)
        means = np.empty((heads, count // LANES, padded.shape[2]), np.float32)
        reaches, how = np.empty(means.shape[:2], np.float32), (TURNS, *(part / math.sqrt(width) for part in REACH))

        def work(some: slice) -> None:
            put = kernels("likeness").put_in_order
            put(padded, order, means, reaches, *how, some.start, some.stop)

        over_heads(work, heads, WORK * count * width)
        made = self._storage(heads, count // LANES, width, self._slab.take, self._device)
        made.put(0, torch.from_numpy(means[..., :width]).to(self._device))
        copied = self._copied(rows, start, order, width) if issubclass(self._storage, ByRow) else None
        numbers = torch.from_numpy(order + np.int32(first + start)).unflatten(1, (-1, LANES))
        stretch = Stretch(numbers.to(self._device), made, torch.from_numpy(reaches).to(self._device), copied)
        self._meter.watch(stretch)(self.stretch_bytes(self._storage, heads, width))
        self.all.append(stretch)

    def _copied(self, rows: Vectors, start: int, order: Order, width: int) -> ByRow:
        """Rows start, start + 1, … in an order (H, STRETCH)."""
        copied, places, begin = (
            ByRow(len(order), STRETCH, width, self._slab.take),
            np.argsort(order, 1).astype(np.int32),
            0,
        )
        for segment in rows.segments:
            inside = slice(max(0, start - begin), min(segment.count, start + STRETCH - begin))
            if inside.start < inside.stop:
                assert isinstance(segment.storage, ByRow)
                here, to = (each.words.view(np.uint32)[..., 0] for each in (segment.storage, copied))
                mine = np.ascontiguousarray(places[:, begin + inside.start - start : begin + inside.stop - start])
                whose = segment.storage.scales, inside.start, inside.stop, mine
                kernels("likeness").copy_rows(here, *whose, to, copied.scales)
            begin += segment.count
        return copied

    def likely(self, queries: Tensor) -> Tensor:
        """See `Stretch.likely`, of all tiles (H, Q, tiles)."""
        return torch.cat([stretch.likely(queries) for stretch in self.all], -1)

    @property
    def numbers(self) -> Tensor:
        """See `Stretch.numbers`, of all tiles (H, tiles, 16)."""
        return torch.cat([stretch.numbers for stretch in self.all], 1)

    @property
    def table(self) -> Numbers:
        """Where they lie on a CPU, for kernels (stretches, 7); see `Stretch.addresses`."""
        return np.array([stretch.addresses for stretch in self.all], np.int64).reshape(-1, 7)

    def fork(self, rows: int, slab: Slab | None = None) -> Stretches:
        """Those that lie in the first `rows` rows, shared."""
        fork = Stretches(self._storage, self._meter, slab, self._device)
        fork.all = self.all[: rows // STRETCH]
        return fork
