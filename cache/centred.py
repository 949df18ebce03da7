"""Vectors that are kept as what they differ in: less the mean of the first ones.

Keys of landmark tokens are mostly the same: four fifths of their squares are their mean. It tells no block from another
one, but few bits spent on it are missed. So from the 64th vector on what is kept is the difference from the mean of the
first 64, which are kept as they are: a session's own vectors alone say where its centre lies, whatever is added later,
and those who share a beginning share it. Of what is kept whole stretches are kept once more (`cache.stretches`).
Letters as in `cache.four_bits`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.four_bits import FourBits
from cache.layout import Bytes
from cache.pages import Slab
from cache.rows import CPU, Rows
from cache.stretches import Stretches
from cache.vectors import FIRST_SEGMENT, Meter, Segment, Vectors

Numbers = NDArray[np.int64]
FIRST = FIRST_SEGMENT
"""Vectors whose mean is the centre of all others; a border of segments."""


class Centred:
    """Methods as those of `Vectors`, and so are arguments, but:

    Args:
        tiled: whole stretches are kept once more

    Attributes:
        stretches: those of the rows behind the first ones
    """

    def __init__(
        self,
        kv_heads: int,
        width: int,
        storage: type[Rows],
        meter: Meter | None = None,
        slab: Slab | None = None,
        device: torch.device = CPU,
        *,
        tiled: bool = True,
    ) -> None:
        self._tiled = tiled
        self._first, self._others = (Vectors(kv_heads, width, storage, meter, slab, device) for _ in range(2))
        self.stretches = Stretches(storage, meter, slab, device)
        self._centre: Tensor | None = None  # (H, D), once there are all of the first ones

    @property
    def count(self) -> int:
        return self._first.count + self._others.count

    def add(self, rows: Tensor) -> None:
        """Append rows (H, N, D)."""
        early, late = rows.split_with_sizes(self._cut(rows.shape[1]), dim=1)
        self._first.add(early)
        self._settle()
        if late.shape[1]:
            self._others.add(late - self._there[:, None])
            self._follow()

    def _cut(self, count: int) -> list[int]:
        """How many of the next rows are first ones, and how many are not."""
        early = min(count, FIRST - self._first.count)
        return [early, count - early]

    def _settle(self) -> None:
        """Find the centre as soon as it can be told."""
        if self._centre is None and self._first.count == FIRST:
            self._centre = self._first.rows(FIRST).double().mean(1).float().contiguous()

    def _follow(self) -> None:
        """Keep once more what has become a whole stretch."""
        if self._tiled:
            self.stretches.follow(self._others, FIRST)

    @property
    def _there(self) -> Tensor:
        assert self._centre is not None, "there are not enough rows yet"
        return self._centre

    def rows(self, last: int, first: int = 0) -> Tensor:
        """Rows first, …, last - 1 as they are kept, in fp32: (H, N, D)."""
        early = self._first.rows(min(last, FIRST), min(first, FIRST))
        if last <= FIRST:
            return early
        return torch.cat((early, self._others.rows(last - FIRST, max(0, first - FIRST)) + self._there[:, None]), 1)

    def largest(self, count: int) -> Tensor:
        """The largest number of each of the first rows, whatever its sign (H, N)."""
        return self.rows(count).abs().amax(-1)

    def scores(self, queries: Tensor, count: int) -> Tensor:
        """Products of queries (H, Q, D) with the first `count` rows: (H, Q, count)."""
        early = self._first.scores(queries, min(count, FIRST))
        if count <= FIRST:
            return early
        return torch.cat((early, self._others.scores(queries, count - FIRST) + self._at_centre(queries)), -1)

    def _at_centre(self, queries: Tensor) -> Tensor:
        """What all rows but the first ones have in common of a product (H, Q, 1)."""
        return queries @ self._there[..., None]

    @property
    def table(self) -> Numbers:
        """Where they lie on a CPU, for kernels: (segments, 5).

        Of each segment of storage its capacity, how many of its rows belong to these, the addresses of words and
        scales, and that of the centre (H, D), or 0 where rows are as they were.
        """
        centre = 0 if self._centre is None else self._centre.data_ptr()
        rows = [_addresses(piece, 0) for piece in self._first.segments]
        rows += [_addresses(piece, centre) for piece in self._others.segments]
        return np.array(rows, np.int64).reshape(-1, 5)

    # -- to and from bytes -----------------------------------------------------------------------------------

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all heads."""
        return self._first.row_bytes

    def pack(self, first: int, last: int) -> Bytes:
        """Rows first, …, last - 1 as they are kept: (N, row_bytes)."""
        early = self._first.pack(min(first, FIRST), min(last, FIRST))
        return np.concatenate((early, self._others.pack(max(0, first - FIRST), max(0, last - FIRST))))

    def sensible(self, packed: Bytes) -> bool:
        """Whether bytes (N, row_bytes) are what `pack` can have given."""
        return self._first.sensible(packed)

    def unpack(self, packed: Bytes) -> None:
        """Append rows as `pack` gave them."""
        early, late = np.split(packed, self._cut(len(packed))[:1])
        self._first.unpack(early)
        self._settle()
        self._others.unpack(late)
        self._follow()

    def fork(self, count: int, slab: Slab | None = None) -> Centred:
        """The first `count` rows, which share their storage; they go on in a slab of their own."""
        fork: Centred = object.__new__(Centred)
        fork._tiled = self._tiled
        fork._first = self._first.fork(min(count, FIRST), slab)
        fork._others = self._others.fork(max(0, count - FIRST), slab)
        fork.stretches = self.stretches.fork(max(0, count - FIRST), slab)
        fork._centre = self._centre if count >= FIRST else None
        return fork


def _addresses(piece: Segment, centre: int) -> list[int]:
    assert isinstance(piece.storage, FourBits)
    return [piece.storage.capacity, piece.count, *piece.storage.addresses, centre]
