"""Room for a fixed number of rows of numbers, kept as they are; `cache.four_bits` keeps them smaller.

Numbers in shapes: H heads, Q queries, N rows, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cache.layout import Bytes


class Rows:
    """Rows 0, 1, 2, … of all heads in fp32, each written once.

    Args:
        heads: heads with rows of their own
        capacity: rows that there is room for
        width: channels of a row
    """

    def __init__(self, heads: int, capacity: int, width: int) -> None:
        self.capacity = capacity
        self._storage = torch.empty(heads, capacity, width)

    @staticmethod
    def row_bytes(heads: int, width: int) -> int:
        """Bytes of a row over all heads."""
        return heads * width * torch.float32.itemsize

    def put(self, first: int, rows: Tensor) -> None:
        """Write rows (H, N, D) at first, first + 1, …."""
        self._storage[:, first : first + rows.shape[1]] = rows

    def rows(self, count: int) -> Tensor:
        """The first rows in fp32 (H, N, D)."""
        return self._storage[:, :count]

    def pack(self, first: int, last: int) -> Bytes:
        """Rows first, …, last - 1 as bytes (N, row_bytes)."""
        return self._storage[:, first:last].transpose(0, 1).flatten(1).contiguous().numpy().view(np.uint8)

    def unpack(self, first: int, packed: Bytes) -> None:
        """Write rows as `pack` gave them."""
        rows = torch.from_numpy(np.ascontiguousarray(packed)).view(torch.float32)
        self.put(first, rows.unflatten(1, (len(self._storage), -1)).transpose(0, 1))

    @classmethod
    def products(cls, queries: Tensor, pieces: Sequence[tuple[Rows, int]]) -> Tensor:
        """Products of queries (H, Q, D) with the first so many rows of each, one after the other: (H, Q, N)."""
        found = [queries @ rows.rows(count).mT for rows, count in pieces]
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)

    @classmethod
    def weighted(cls, weights: Tensor, pieces: Sequence[tuple[Rows, int]]) -> Tensor:
        """Sums of the first so many rows of each by weights (H, Q, N): (H, Q, D)."""
        parts = weights.split([count for _, count in pieces], dim=2)
        sums = [part @ rows.rows(part.shape[2]) for part, (rows, _) in zip(parts, pieces, strict=True)]
        return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
