"""CPU kernels for many blocks: one exponential for each decides what is read and what the rest weighs, and one mean
value stands for a section of them.

Of every block its mass is estimated. Whose is largest is read; what is left is summed up by sections. Compiled by Numba
when first called. Letters in shapes: T queries, G query heads per KV head, Q = T * G, R room for all blocks
(`cache.recall_kernels`), K chosen blocks, D channels.
"""

from __future__ import annotations

import numpy as np

from cache.choice_kernels import add_share, best_blocks
from cache.compiling import compiled
from cache.four_bit_kernels import SLICE_BYTES, add_up_rows, chunks_of, round_queries
from cache.four_bits import DEEP, LANES
from cache.lane_kernels import CHUNK, NOTHING, address, copy, gauge, pool, shorten_tile
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
    multiply_at,
    multiply_part,
    steps_of,
)

WIDE = 256
"""Blocks of which everything that is asked about them stays in the nearest cache."""
SECTION_VALUES, SECTION_KEYS, SECTION_SLOPES = range(3)
"""Parts of an index of sections, in its table's order."""


@compiled
def weigh_blocks(
    queries: Floats, numbers: Small, starts: Starts, sizes: Floats, table: Integers, head: int, count: int,
    reach: float, log_size: float, slopes: bool, masses: Floats,
) -> None:  # fmt: skip
    """Logarithms of the masses (Q, R) of the first `count` blocks for queries (Q, D).

    Args:
        numbers, starts, sizes: the queries in 8 bits, by `round_queries`
    """
    rows, square = len(queries), np.empty(queries.shape, np.int8)
    square_starts, square_sizes = np.empty(rows, np.int32), np.empty(rows, np.float32)
    round_queries(queries * queries, square, square_starts, square_sizes)
    near, start = np.zeros((3, rows, WIDE), np.float32), 0
    for segment in range(len(table)):
        taken = min(table[segment, 1], count - start)
        for inside in range(0, taken, WIDE):
            few = min(WIDE, taken - inside)
            multiply_at(table[segment], VARIANCE, head, inside, square, square_starts, square_sizes, near[1], 0, few)
            multiply_at(table[segment], MEAN, head, inside, numbers, starts, sizes, near[0], 0, few)
            if slopes:
                multiply_at(table[segment], SLOPE_KEYS, head, inside, numbers, starts, sizes, near[2], 0, few)
            for row in range(rows):
                of_all = address(near[0, row]), address(near[1, row]), address(near[2, row])
                to = address(masses[row]) + 4 * (start + inside)
                gauge(*of_all, to, np.float32(reach), np.float32(log_size), steps_of(few))
        start += max(0, taken)


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
    whole[:end] = 0.0
    for group in range(len(masses)):
        peaks[group] = add_share(masses[group], sinks, end, whole)
        masses[group, :sinks] = 0.0
        masses[group, end:padded] = 0.0
    best_blocks(whole, sinks, end, np.empty(len(blocks), np.float32), blocks)
    for block in blocks:
        if block >= 0:
            for group in range(len(masses)):
                masses[group, block] = 0.0


@compiled
def add_edge(
    numbers: Small, starts: Starts, sizes: Floats, table: Integers, head: int, weights: Floats, start: int, stop: int,
    slopes: bool, rest: Floats,
) -> None:  # fmt: skip
    """Add values of blocks start, …, stop - 1, fewer than a section, to rest (G, D), times weights (G, R).

    Args:
        numbers, starts, sizes: the queries (G, D) in 8 bits, by `round_queries`
    """
    groups = len(numbers)
    tile, segment = start // LANES * LANES, 0
    inside = tile
    while inside >= table[segment, 1]:
        inside -= table[segment, 1]
        segment += 1
    mine, along = np.zeros((groups, CHUNK), np.float32), np.empty((groups, CHUNK), np.float32)
    mine[:, start - tile : stop - tile] = weights[:, start:stop]
    add_tile(table[segment], VALUES, head, inside, mine, rest)
    if slopes:
        multiply_at(table[segment], SLOPE_KEYS, head, inside, numbers, starts, sizes, along, 0, LANES)
        by_turn(along, mine, LANES, LANES)
        add_tile(table[segment], SLOPE_VALUES, head, inside, along, rest)


@compiled
def add_tile(row: Integers, part: int, head: int, inside: int, weights: Floats, sums: Floats) -> None:
    """Add 16 rows of one segment, from `inside` on, times the first of weights (Q, 64), to sums (Q, D)."""
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
    numbers, starts, sizes = np.empty(queries.shape, np.int8), np.empty(rows, np.int32), np.empty(rows, np.float32)
    round_queries(queries, numbers, starts, sizes)
    weigh_blocks(queries, numbers, starts, sizes, table, head, ends[-1], reach, log_size, slopes, masses)
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
        multiply_part(section_table, SECTION_KEYS, head, numbers, starts, sizes, turned, count)
        by_turn(turned, pooled, count, padded)
        add_up_part(section_table, SECTION_SLOPES, head, turned, room[2], short, rest, count)
    for query in range(len(ends)):
        mine, last = slice(query * groups, (query + 1) * groups), SECTION * max(first, ends[query] // SECTION)
        for start, stop in ((sinks, min(SECTION * first, ends[query])), (last, ends[query])):
            if start < stop:
                add_edge(
                    numbers[mine], starts[mine], sizes[mine], table, head, masses[mine], start, stop, slopes, rest[mine]
                )
        for group in range(groups):
            total = totals[query * groups + group]
            weight[query, group] = peaks[query * groups + group] + np.log(total) if total > 0 else NOTHING
            rest[query * groups + group] *= np.float32(1.0) / total if total > 0 else np.float32(0.0)
