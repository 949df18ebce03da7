"""CPU kernels of attention to copies of blocks in 4 bits, which lie in the index. Compiled by Numba when first called.

A copy's keys are rows of `ByRow` and its values rows of `ByChannel`, so the kernels of four bits multiply and add them
up where they lie; see `cache.four_bit_kernels`. Letters in shapes: H KV heads, T queries, G query heads per KV head, K
blocks, B positions of a block, D channels.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from cache.compiling import compiled
from cache.four_bit_kernels import add_up_rows, multiply_rows, round_queries
from cache.four_bits import LANES
from cache.lane_kernels import address, copy, exponentials, highest, prefetch, shorten_tile
from cache.sharing import Shared
from cache.sharing_kernels import WHOLE, array, shared, unpacker

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
CAPACITY, COUNT, KEYS, KEY_SCALES, VALUES, VALUE_SCALES = range(6)
"""Columns of `BlockIndex.copies_table`."""
AHEAD = 3
"""So many blocks before they are read they are asked for."""


@compiled
def find_copies(table: Integers, head: int, blocks: Integers, size: int, channels: int, places: Integers) -> int:
    """Where copies of blocks (K,) lie, and how many of the blocks there are: the first one of -1 ends them.

    A copy lies in one segment: positions of a block divide 64.

    Args:
        places: addresses of a block's keys, their scales, its values and their scales (K, 4), filled
    """
    for k in range(len(blocks)):
        if blocks[k] < 0:
            return k
        segment, row = 0, blocks[k] * size
        while row >= table[segment, COUNT]:
            row -= table[segment, COUNT]
            segment += 1
        row += head * table[segment, CAPACITY]
        places[k, 0] = table[segment, KEYS] + row * channels // 2
        places[k, 1] = table[segment, KEY_SCALES] + 4 * row
        places[k, 2] = table[segment, VALUES] + row * channels // 2
        places[k, 3] = table[segment, VALUE_SCALES] + 4 * row
    return len(blocks)


@compiled
def join_softmax(scores: Floats, steps: int, weight: Floats, rest: Floats) -> None:
    """One softmax of scores (G, 16 * steps or more) and of what was estimated before, which it takes its share of.

    Args:
        scores: replaced by weights
        weight: logarithm of the mass (G,) of what was estimated, replaced by that of both
        rest: what was estimated (G, D), multiplied with its weight
    """
    for group in range(len(scores)):
        mine = scores[group]
        peak = max(np.float32(highest(address(mine), steps)), weight[group])
        share = np.exp(weight[group] - peak)
        total = np.float32(exponentials(address(mine), peak, address(mine), steps)) + share
        factor = np.float32(1.0) / total
        for i in range(steps * LANES):
            mine[i] *= factor
        for d in range(rest.shape[1]):
            rest[group, d] *= share * factor
        weight[group] = peak + np.log(total)


@compiled
def attend_copies(
    queries: Floats, borders: Integers, tables: Integers, table_borders: Integers, size: int, blocks: Integers,
    fetched: int, weight: Floats, rest: Floats, first: int, last: int,
) -> None:  # fmt: skip
    """Attention of heads first, …, last - 1 to copies of blocks, in one softmax with what was estimated before.

    Args:
        queries: as copies see them (H, T * G, D), one session's after the other's; D is a multiple of 16
        borders: queries borders[i], …, borders[i + 1] - 1 are those of session i (sessions + 1,)
        tables: of the sessions' indexes, one after the other, as `BlockIndex.copies_table`
        table_borders: which rows of them are whose (sessions + 1,)
        size: positions of a block: 16, 32 or 64
        blocks: (H, T, K); the first one of -1 ends a query's
        fetched: so many of the K, the first ones, are not read from copies
        weight: the logarithm of the mass of what is estimated (H, T, G), `NOTHING` of nothing; that of both afterwards
        rest: what is estimated (H, T * G, D); both afterwards
    """
    groups, channels, most = weight.shape[2], queries.shape[2], blocks.shape[2] - fetched
    numbers, starts = np.empty((groups, channels), np.int8), np.empty(groups, np.int32)
    sizes, places = np.empty(groups, np.float32), np.empty((most, 4), np.int64)
    scores, scales = np.empty((groups, most * size), np.float32), np.empty(most * size, np.float32)
    # of each query head its weights in 8 bits, and for each 16 of them what sums begin with and a scale
    short, parts = np.empty((groups, 3, most * size), np.float32), size // LANES
    apart, to_starts, to_sizes = 12 * most * size, 4 * most * size, 8 * most * size
    block_bytes = size * channels // 2
    for i in range(len(borders) - 1):
        table = tables[table_borders[i] : table_borders[i + 1]]
        for head in range(first, last):
            for query in range(borders[i], borders[i + 1]):
                rows = slice(query * groups, (query + 1) * groups)
                count = find_copies(table, head, blocks[head, query, fetched:], size, channels, places)
                if not count:
                    continue
                round_queries(queries[head, rows], numbers, starts, sizes)
                for k in range(count):
                    ahead = min(k + AHEAD, count - 1)
                    prefetch(places[ahead, 0], block_bytes)
                    prefetch(places[ahead, 2], block_bytes)
                    multiply_rows(numbers, starts, sizes, places[k, 0], places[k, 1], scores, k * size, size)
                    copy(places[k, 3], address(scales) + 4 * k * size, parts)
                join_softmax(scores, count * parts, weight[head, query], rest[head, rows])
                for group in range(groups):
                    to = address(short[group])
                    shorten_tile(
                        address(scores[group]), address(scales), to, to + to_starts, to + to_sizes, count * parts
                    )
                to = address(short)
                for k in range(count):
                    of_all = to, to + to_starts, to + to_sizes, apart
                    added = k * size, places[k, 2], rest[head, rows], size, LANES
                    add_up_rows(*of_all, *added)


REALS, INTEGERS = np.float32, np.int64
KINDS = (
    array(REALS, 3), array(INTEGERS, 1), array(INTEGERS, 2), array(INTEGERS, 1), WHOLE, array(INTEGERS, 3), WHOLE,
    array(REALS, 3), array(REALS, 3),
)  # fmt: skip
"""Of the arguments of `attend_copies` before the range."""
unpack = unpacker(*KINDS)


def attend_job(arguments: int, first: int, last: int) -> None:
    """`attend_copies` with arguments at an address."""
    attend_copies(*unpack(arguments), first, last)


@functools.cache
def shared_attend() -> Shared:
    """`attend_copies` for `share`."""
    return shared(attend_job, *KINDS)
