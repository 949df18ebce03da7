"""CPU kernels for rows that are kept in 8 bits, compiled by Numba when they are first called.

A decoded token asks a few queries of every row: turning all rows to fp32 first would cost many times their bytes. Each
kernel works on one head without the GIL, so that several run at once. Arrays are C-contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.compiling import compiled

ROWS_PER_THREAD = 1024
"""Fewer rows than this are not worth a thread's wake-up."""
Floats = NDArray[np.float32]


@compiled
def multiply(queries: Floats, rows: NDArray[np.int8], scales: Floats, products: Floats, head: int) -> None:
    """Products of queries (heads, queries, width) with the first rows of a head.

    Args:
        rows, scales: (heads, rows, width) and (heads, rows)
        products: (heads, queries, as many rows as are wanted), filled
    """
    for row in range(products.shape[2]):
        for query in range(queries.shape[1]):
            total = np.float32(0.0)
            for d in range(rows.shape[2]):
                total += queries[head, query, d] * np.float32(rows[head, row, d])
            products[head, query, row] = total * scales[head, row]


@compiled
def add_up(weights: Floats, rows: NDArray[np.int8], scales: Floats, sums: Floats, head: int) -> None:
    """Add the first rows of a head, times weights (heads, queries, rows), to sums (heads, queries, width)."""
    for query in range(weights.shape[1]):
        for row in range(weights.shape[2]):
            weight = weights[head, query, row] * scales[head, row]
            if weight != 0.0:
                for d in range(rows.shape[2]):
                    sums[head, query, d] += weight * np.float32(rows[head, row, d])


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="landmarks")


def over_heads(heads: int, rows: int, work: Callable[[int], None]) -> None:
    """Do the work of each head, on several threads if that is worth it."""
    threads = min(torch.get_num_threads(), heads, heads * rows // ROWS_PER_THREAD)
    if threads <= 1:
        for head in range(heads):
            work(head)
    else:
        list(pool(threads).map(work, range(heads)))


def products(queries: Tensor, rows: Tensor, scales: Tensor, count: int) -> Tensor:
    """Products of queries (heads, queries, width) with the first `count` 8-bit rows: (heads, queries, count)."""
    found = torch.empty((*queries.shape[:2], count))
    arrays = (queries.contiguous().numpy(), rows.numpy(), scales.numpy(), found.numpy())
    over_heads(queries.shape[0], count, lambda head: multiply(*arrays, head))
    return found


def weighted(weights: Tensor, rows: Tensor, scales: Tensor) -> Tensor:
    """Sums of the first 8-bit rows by weights (heads, queries, rows): (heads, queries, width)."""
    sums = torch.zeros((*weights.shape[:2], rows.shape[2]))
    arrays = (weights.contiguous().numpy(), rows.numpy(), scales.numpy(), sums.numpy())
    over_heads(weights.shape[0], weights.shape[2], lambda head: add_up(*arrays, head))
    return sums


def warm_up() -> None:
    """Compile now, or load what an earlier start compiled, rather than in somebody's first request."""
    rows, scales = torch.zeros(1, 1, 1, dtype=torch.int8), torch.zeros(1, 1)
    products(torch.zeros(1, 1, 1), rows, scales, 1)
    weighted(torch.zeros(1, 1, 1), rows, scales)
