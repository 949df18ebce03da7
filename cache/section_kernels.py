"""CPU kernels for many blocks: one exponential for each decides what is read and what the rest weighs, and one mean
value stands for a section of them.

Of every block its mass is estimated. Whose is largest is read; what is left is summed up by sections. Compiled by Numba
when first called. Letters in shapes: T queries, G query heads per KV head, Q = T * G, R room for all blocks
(`cache.recall_kernels`), K chosen blocks, D channels.
"""

from __future__ import annotations

import numpy as np

from cache.choice_kernels import best_blocks
from cache.compiling import compiled
from cache.four_bit_kernels import SLICE_BYTES, add_up_rows, chunks_of, multiply_rows, round_queries
from cache.four_bits import DEEP, LANES
from cache.lane_kernels import CHUNK, NOTHING, address, copy, exponentials, gauge, highest, pool, shorten_tile
from cache.sections import SECTION
from cache.walk_kernels import (
    MEAN,
    SLOPE_KEYS,
    SLOPE_VALUES,
    VALUES,
    VARIANCE,
    Floats,
    Integers,
    Small,
    Starts,
    add_up_part,
    by_turn,
    multiply_part,
    steps_of,
)

WIDE = 256
"""Blocks of which everything that is asked about them stays in the nearest cache."""
SECTION_VALUES, SECTION_KEYS, SECTION_SLOPES = range(3)
"""Parts of an index of sections, in its table's order."""


@compiled
def weigh_blocks(
    queries: Floats, table: Integers, head: int, count: int, reach: float, log_size: float, slopes: bool, masses: Floats
) -> None:
    """Logarithms of the masses (Q, R) of the first `count` blocks for queries (Q, D)."""
    rows = len(queries)
    plain, square = np.empty(queries.shape, np.int8), np.empty(queries.shape, np.int8)
    starts, sizes = np.empty((2, rows), np.int32), np.empty((2, rows), np.float32)
    round_queries(queries, plain, starts[0], sizes[0])
    round_queries(queries * queries, square, starts[1], sizes[1])
    near, start = np.zeros((3, rows, WIDE), np.float32), 0
    for segment in range(len(table)):
        taken = min(table[segment, 1], count - start)
        for inside in range(0, taken, WIDE):
            few = min(WIDE, taken - inside)
            multiply_at(table[segment], VARIANCE, head, inside, square, starts[1], sizes[1], near[1], few)
            multiply_at(table[segment], MEAN, head, inside, plain, starts[0], sizes[0], near[0], few)
            if slopes:
                multiply_at(table[segment], SLOPE_KEYS, head, inside, plain, starts[0], sizes[0], near[2], few)
            for row in range(rows):
                of_all = address(near[0, row]), address(near[1, row]), address(near[2, row])
                to = address(masses[row]) + 4 * (start + inside)
                gauge(*of_all, to, np.float32(reach), np.float32(log_size), steps_of(few))
        start += max(0, taken)


@compiled
def multiply_at(
    row: Integers, part: int, head: int, inside: int, numbers: Small, starts: Starts, sizes: Floats, products: Floats,
    count: int,
) -> None:  # fmt: skip
    """Products (Q, R) of a head's queries with `count` vectors of one segment, from `inside` on, a multiple of 16.

    Args:
        row: of the index's table
    """
    words = row[2 + 2 * part] + head * row[0] * numbers.shape[1] // 2
    words += inside // LANES * (numbers.shape[1] // DEEP) * SLICE_BYTES
    scales = row[3 + 2 * part] + 4 * (head * row[0] + inside)
    multiply_rows(numbers, starts, sizes, words, scales, products, 0, count)


@compiled
def share_out(
    masses: Floats, sinks: int, end: int, padded: int, whole: Floats, blocks: Integers, peaks: Floats
) -> None:
    """Choose blocks by the mean of query heads' shares, and replace masses by weights of what is not chosen.

    Args:
        masses: logarithms (G, R), replaced by exp(mass - peak); 0 of what is read, may not be, or is not there
        sinks, end: the first block that may be chosen, and the first that may not any more
        padded: blocks up to which weights are written
        whole: room (R,)
        blocks: (K,), filled, the best ones first; -1 where there was nothing left
        peaks: (G,), filled
    """
    steps = steps_of(end)
    whole[:end] = 0.0
    for group in range(len(masses)):
        mine = masses[group]
        mine[:sinks] = NOTHING
        mine[end : steps * LANES] = NOTHING
        peaks[group] = highest(address(mine), steps)
        factor = np.float32(1.0) / np.float32(exponentials(address(mine), peaks[group], address(mine), steps))
        for n in range(end):
            whole[n] += mine[n] * factor
        mine[:sinks] = 0.0
        mine[end:padded] = 0.0
    best_blocks(whole, sinks, end, np.empty(len(blocks), np.float32), blocks)
    for block in blocks:
        if block >= 0:
            for group in range(len(masses)):
                masses[group, block] = 0.0


@compiled
def add_edge(
    queries: Floats, table: Integers, head: int, weights: Floats, start: int, stop: int, slopes: bool, rest: Floats
) -> None:
    """Add values of blocks start, …, stop - 1, fewer than a section, to rest (G, D), times weights (G, R)."""
    groups = len(queries)
    tile, segment = start // LANES * LANES, 0
    inside = tile
    while inside >= table[segment, 1]:
        inside -= table[segment, 1]
        segment += 1
    mine, along = np.zeros((groups, CHUNK), np.float32), np.empty((groups, CHUNK), np.float32)
    mine[:, start - tile : stop - tile] = weights[:, start:stop]
    add_tile(table[segment], VALUES, head, inside, mine, rest)
    if slopes:
        numbers, starts = np.empty(queries.shape, np.int8), np.empty(groups, np.int32)
        sizes = np.empty(groups, np.float32)
        round_queries(queries, numbers, starts, sizes)
        multiply_at(table[segment], SLOPE_KEYS, head, inside, numbers, starts, sizes, along, LANES)
        by_turn(along, mine, LANES, LANES)
        add_tile(table[segment], SLOPE_VALUES, head, inside, along, rest)


@compiled
def add_tile(row: Integers, part: int, head: int, inside: int, weights: Floats, sums: Floats) -> None:
    """Add 16 rows of one segment, from `inside` on, times weights (Q, 64), of which the first count, to sums (Q, D)."""
    queries, channels = sums.shape
    scales, short = np.empty(LANES, np.float32), np.empty((queries, CHUNK), np.float32)
    copy(row[3 + 2 * part] + 4 * (head * row[0] + inside), address(scales), 1)
    numbers, starts, sizes = address(short), address(short) + CHUNK, address(short) + 2 * CHUNK
    for query in range(queries):
        further = 4 * CHUNK * query
        to = numbers + further, starts + further, sizes + further
        shorten_tile(address(weights[query]), address(scales), *to, 1)
    words = row[2 + 2 * part] + head * row[0] * channels // 2 + inside // DEEP * (channels // LANES) * SLICE_BYTES
    add_up_rows(numbers, starts, sizes, 4 * CHUNK, 0, words, sums, LANES, LANES)


@compiled
def recall_sections(
    queries: Floats, table: Integers, section_table: Integers, head: int, sinks: int, ends: Integers, reach: float,
    log_size: float, slopes: bool, room: Floats, blocks: Integers, weight: Floats, rest: Floats,
) -> None:  # fmt: skip
    """What queries fetch, and what they estimate of the rest by sections; arguments as `recall_few`.

    Blocks that no whole section holds, for it reaches into the sinks or beyond a query's end, are estimated by
    themselves.

    Args:
        section_table: of the index of sections
    """
    rows, groups = len(queries), len(queries) // len(ends)
    count, first = ends[-1] // SECTION, (sinks + SECTION - 1) // SECTION
    padded = CHUNK * chunks_of(count)  # sections
    masses, pooled = room[3:][:rows], room[3 + rows :][:rows]
    turned, short = room[3 + 2 * rows :][:rows], room[3 + 3 * rows :][:rows]
    peaks, totals = np.empty(rows, np.float32), np.empty(rows, np.float32)
    weigh_blocks(queries, table, head, ends[-1], reach, log_size, slopes, masses)
    for query in range(len(ends)):
        mine, last = slice(query * groups, (query + 1) * groups), max(first, ends[query] // SECTION)
        share_out(masses[mine], sinks, ends[query], CHUNK * chunks_of(ends[query]), room[0], blocks[query], peaks[mine])
        for row in range(query * groups, (query + 1) * groups):
            pool(address(masses[row]), address(pooled[row]), chunks_of(ends[query]))
            pooled[row, :first] = 0.0
            pooled[row, last:padded] = 0.0
            totals[row] = pooled[row, first:last].sum() + masses[row, sinks : min(SECTION * first, ends[query])].sum()
            totals[row] += masses[row, SECTION * last : ends[query]].sum()
    rest[:] = 0.0
    add_up_part(section_table, SECTION_VALUES, head, pooled, room[1], short, rest, count)
    if slopes:
        numbers, starts, sizes = np.empty(queries.shape, np.int8), np.empty(rows, np.int32), np.empty(rows, np.float32)
        round_queries(queries, numbers, starts, sizes)
        multiply_part(section_table, SECTION_KEYS, head, numbers, starts, sizes, turned, count)
        by_turn(turned, pooled, count, padded)
        add_up_part(section_table, SECTION_SLOPES, head, turned, room[2], short, rest, count)
    for query in range(len(ends)):
        mine, last = slice(query * groups, (query + 1) * groups), SECTION * max(first, ends[query] // SECTION)
        edge = min(SECTION * first, ends[query])
        if sinks < edge:
            add_edge(queries[mine], table, head, masses[mine], sinks, edge, slopes, rest[mine])
        if last < ends[query]:
            add_edge(queries[mine], table, head, masses[mine], last, ends[query], slopes, rest[mine])
        for group in range(groups):
            total = totals[query * groups + group]
            weight[query, group] = peaks[query * groups + group] + np.log(total) if total > 0 else NOTHING
            rest[query * groups + group] *= np.float32(1.0) / total if total > 0 else np.float32(0.0)
