"""Room for a fixed number of rows of numbers, kept as they are; `cache.four_bits` and `cache.packed` keep them smaller.

Numbers in shapes: H heads, Q queries, N rows, D channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cache.layout import Bytes
from cache.pages import zero_bytes

Take = Callable[[int], Bytes]

CPU = torch.device("cpu")


def each_head(numbers: Tensor) -> Tensor:
    """Heads (H, 1) of rows that each head has numbers (H, N) of its own for."""
    return torch.arange(len(numbers), device=numbers.device)[:, None]


class Rows:
    """Rows 0, 1, 2, … of all heads in fp32, each written once.

    Args:
        heads: heads with rows of their own
        capacity: rows that there is room for
        width: channels of a row
        take: gives so many bytes of zeros, if it matters where rows lie
        device: where they lie
    """

    def __init__(
        self, heads: int, capacity: int, width: int, take: Take = zero_bytes, device: torch.device = CPU
    ) -> None:
        self.capacity = capacity
        self._storage = torch.empty(heads, capacity, width, device=device)

    @staticmethod
    def row_bytes(heads: int, width: int) -> int:
        """Bytes of a row over all heads."""
        return heads * width * torch.float32.itemsize

    def put(self, first: int, rows: Tensor) -> None:
        """Write rows (H, N, D) at first, first + 1, …."""
        self._storage[:, first : first + rows.shape[1]] = rows

    def rows(self, last: int, first: int = 0) -> Tensor:
        """Rows first, …, last - 1 in fp32 (H, N, D)."""
        return self._storage[:, first:last]

    def largest(self, count: int) -> Tensor:
        """The largest number of each of the first rows, whatever its sign (H, N)."""
        return self.rows(count).abs().amax(-1)

    def pick(self, numbers: Tensor) -> Tensor:
        """Rows of such numbers, each head its own (H, N), in fp32: (H, N, D)."""
        return self._storage[each_head(numbers), numbers]

    def pack(self, first: int, last: int) -> Bytes:
        """Rows first, …, last - 1 as bytes (N, row_bytes)."""
        return self._storage[:, first:last].transpose(0, 1).flatten(1).contiguous().cpu().numpy().view(np.uint8)

    @staticmethod
    def sensible(packed: Bytes, heads: int) -> bool:
        """Whether bytes (N, row_bytes) are what `pack` can have given."""
        return bool(np.isfinite(np.ascontiguousarray(packed).view(np.float32)).all())

    def unpack(self, first: int, packed: Bytes) -> None:
        """Write rows as `pack` gave them."""
        rows = torch.from_numpy(np.ascontiguousarray(packed)).view(torch.float32)
        rows = rows.to(self._storage.device)
        self.put(first, rows.unflatten(1, (len(self._storage), -1)).transpose(0, 1))

    def products(self, queries: Tensor, count: int, found: Tensor, start: int, heads: slice) -> None:
        """Write products of queries (H, Q, D) with the first rows to found (H, Q, N) from column `start` on."""
        found[heads, :, start : start + count] = queries[heads] @ self.rows(count)[heads].mT

    def add_up(self, weights: Tensor, count: int, sums: Tensor, start: int, heads: slice) -> None:
        """Add the first rows, times weights (H, Q, N) from column `start` on, to sums (H, Q, D)."""
        sums[heads] += weights[heads, :, start : start + count] @ self.rows(count)[heads]
