"""CPU kernels that choose by products with one centred landmark of each block (`cache.centred`), in one call.

Compiled by Numba when first called. Letters in shapes as in `recall_kernels`.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from cache.choice_kernels import choose_head
from cache.compiling import compiled
from cache.four_bit_kernels import TOGETHER, round_queries
from cache.recall_kernels import first_beyond
from cache.sharing import Shared
from cache.sharing_kernels import WHOLE, array, shared, unpacker
from cache.stretch_kernels import choose_by_tiles, multiply_all

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@compiled
def choose_landmarks(
    queries: Floats, borders: Integers, tables: Integers, table_borders: Integers, stretches: Integers,
    stretch_borders: Integers, sinks: int, ends: Integers, most: int, blocks: Integers, room: Floats, first: int,
    last: int,
) -> None:  # fmt: skip
    """What heads first, …, last - 1 fetch; arguments as `recall_moments`.

    Args:
        queries: (H, T * G, W), W a multiple of 16
        tables: as `Centred.table`
        stretches, stretch_borders: the same as `Stretches.table`
        most: of more blocks than so many a query chooses by tiles of whole stretches; only if G is 1
        room: (H, `choose_rows`, R), of which only that of head `first` is used; R for `most` blocks at least, if there
            are more
    """
    groups = queries.shape[1] // len(ends)
    few = max(1, TOGETHER // groups)
    numbers, starts = np.empty((groups * few, queries.shape[2]), np.int8), np.empty(groups * few, np.int32)
    sizes = np.empty(groups * few, np.float32)
    for i in range(len(borders) - 1):
        table = tables[table_borders[i] : table_borders[i + 1]]
        whole = stretches[stretch_borders[i] : stretch_borders[i + 1]]
        far = first_beyond(ends, borders[i], borders[i + 1], most)
        for head in range(first, last):
            for begin in range(borders[i], far, few):
                end = min(begin + few, far)
                rows = groups * (end - begin)
                mine = queries[head, begin * groups : end * groups]
                round_queries(mine, numbers[:rows], starts[:rows], sizes[:rows])
                asked, scores = (numbers[:rows], starts[:rows], sizes[:rows]), room[first, 1:][:rows]
                multiply_all(mine, table, head, *asked, scores, ends[begin:end])
                choose_head(scores, sinks, ends[begin:end], blocks[head, begin:end], room[first, 0])
            for begin in range(far, borders[i + 1], few):
                end = min(begin + few, borders[i + 1])
                choose_by_tiles(
                    queries[head, begin:end], table, whole, head, sinks, ends[begin:end], blocks[head, begin:end]
                )


def choose_rows(groups: int) -> int:
    """Rows of numbers that `choose_landmarks` works with, for so many query heads of a head."""
    return 1 + groups * max(1, TOGETHER // groups)


REALS, INTEGERS = np.float32, np.int64
CHOOSE = (
    array(REALS, 3), array(INTEGERS, 1), array(INTEGERS, 2), array(INTEGERS, 1), array(INTEGERS, 2),
    array(INTEGERS, 1), WHOLE, array(INTEGERS, 1), WHOLE, array(INTEGERS, 3), array(REALS, 3),
)  # fmt: skip
"""Kinds of the arguments of `choose_landmarks` before the range."""
unpack_choose = unpacker(*CHOOSE)


def choose_job(arguments: int, first: int, last: int) -> None:
    """`choose_landmarks` with arguments at an address."""
    choose_landmarks(*unpack_choose(arguments), first, last)


@functools.cache
def shared_choose() -> Shared:
    """`choose_landmarks` for `share`."""
    return shared(choose_job, *CHOOSE)
