"""CPU kernels for many blocks: of each one only its mean and its slope are asked, all else of its section.

Of every block its mass is estimated. Whose is largest is read; of what is left each section's mean value stands for its
blocks. Blocks that no whole section holds, for it reaches into the sinks or beyond a query's end, have values of their
own. Compiled by Numba when first called. Letters in shapes: T queries, G query heads per KV head, Q = T * G, R room for
all blocks (`cache.recall_kernels`), K chosen blocks, D channels.
"""

from __future__ import annotations

import math

import numpy as np

from cache.choice_kernels import best_blocks
from cache.compiling import compiled
from cache.four_bit_kernels import SLICE_BYTES, add_up_rows, chunks_of, round_queries
from cache.four_bits import DEEP, LANES, LARGEST
from cache.lane_kernels import CHUNK, LOG2_E, NOTHING, address, copy, shorten_tile
from cache.mass_kernels import add_shares, masses_beside, scale_sections
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
    scales_at,
)

PIECE = 512
"""Blocks of which everything that is asked about them stays in the nearest cache."""
HIGH, LOW = 40.0, 64.0
"""Powers of two: masses are told beside one that is at most so much below the largest of them; those so much below the
largest one count as equal."""
SECTION_PROFILES, SECTION_VALUES, SECTION_KEYS, SECTION_SLOPES = range(4)
"""Parts of an index of sections, in its table's order."""


@compiled
def look_at_sections(queries: Floats, table: Integers, head: int, ends: Integers, profiles: Floats) -> None:
    """Products (Q, R) of squares of queries (Q, D) with sections' profiles.

    Behind its last whole section a query sees that one's: what comes later must not change anything.

    Args:
        table: of the index of sections
        ends: (T,), at least a section each
    """
    rows, groups = len(queries), len(queries) // len(ends)
    numbers, starts, sizes = np.empty(queries.shape, np.int8), np.empty(rows, np.int32), np.empty(rows, np.float32)
    round_queries(queries * queries, numbers, starts, sizes)
    sizes *= LARGEST  # of a variance its scale is kept, which is so much smaller than its size
    multiply_part(table, SECTION_PROFILES, head, numbers, starts, sizes, profiles, ends[-1] // SECTION)
    for row in range(rows):
        last = ends[row // groups] // SECTION
        profiles[row, last] = profiles[row, last - 1]
        profiles[row, last + 1 : ends[-1] // SECTION + CHUNK] = 0.0


@compiled
def two_to(power: float) -> np.float32:
    """2**power of a whole number, 0 if it is too small."""
    return np.float32(0.0) if power < -126 else np.float32(math.ldexp(1.0, int(power)))


@compiled
def hide(near: Floats, first: int, few: int, sinks: int, end: int) -> None:
    """Of a piece's means (R,), those of blocks first, …, first + few - 1, hide what is no choice for a query."""
    near[: max(0, min(few, sinks - first))] = NOTHING
    near[max(0, min(few, end - first)) : chunks_of(few) * CHUNK] = NOTHING


@compiled
def rise(beside: Floats, row: int, best: float, lanes: Floats) -> None:
    """Tell a row's masses beside a higher power of two from now on: sums (Q, 32) so far get smaller."""
    higher = np.rint(best)
    lanes[row, :LANES] *= two_to(beside[row, -1] - higher)
    beside[row, -1] = higher


@compiled
def weigh_piece(
    of_all: tuple[int, int, int, int], reach: float, row: int, first: int, steps: int, to: tuple[int, int],
    lanes: Floats, beside: Floats, peaks: Floats,
) -> None:  # fmt: skip
    """Masses of 64 * steps blocks of one query head beside a power of two, which rises if it must.

    Whole arrays and a row's number, for a view of a row takes as long as a tile.

    Args:
        of_all, to: addresses that `masses_beside` takes
        first: the first one, a multiple of 64
        lanes: sums of masses so far (Q, 32), of which the second half is room
        beside: the power beside which each 64 blocks are told (Q, R / 64); the last one is the present one
        peaks: (Q,), the largest power so far
    """
    sums = address(lanes) + 4 * 2 * LANES * row
    best = masses_beside(*of_all, np.float32(reach), beside[row, -1], *to, sums, steps)
    if best > beside[row, -1] + HIGH:
        rise(beside, row, best, lanes)
        masses_beside(*of_all, np.float32(reach), beside[row, -1], *to, sums, steps)
    copy(sums + 4 * LANES, sums, 1)
    for step in range(steps):
        beside[row, first // CHUNK + step] = beside[row, -1]
    peaks[row] = max(peaks[row], best)


@compiled
def weigh_blocks(
    numbers: Small, starts: Starts, sizes: Floats, table: Integers, head: int, sinks: int, ends: Integers, reach: float,
    slopes: bool, profiles: Floats, masses: Floats, pooled: Floats, beside: Floats, peaks: Floats, totals: Floats,
) -> None:  # fmt: skip
    """Masses (Q, R) of blocks, and their sums by sections (Q, R); arguments as `weigh_piece`.

    Args:
        numbers, starts, sizes: the queries in 8 bits, by `round_queries`
        profiles: by `look_at_sections`
        totals: (Q,), filled: the sums of all masses, beside the last power
    """
    rows, groups, start, apart = len(masses), len(masses) // len(ends), 0, 4 * masses.shape[1]
    means, along = np.zeros((rows, PIECE), np.float32), np.zeros((rows, PIECE), np.float32)
    lanes, of_base_2 = np.zeros((rows, 2 * LANES), np.float32), sizes * np.float32(LOG2_E)
    beside[:, -1] = peaks[:] = NOTHING
    for segment in range(len(table)):
        taken = min(table[segment, 1], ends[-1] - start)
        for inside in range(0, taken, PIECE):
            few, first = min(PIECE, taken - inside), start + inside
            multiply_at(table[segment], MEAN, head, inside, numbers, starts, of_base_2, means, 0, few)
            if slopes:
                multiply_at(table[segment], SLOPE_KEYS, head, inside, numbers, starts, sizes, along, 0, few)
            scales = scales_at(table[segment], VARIANCE, head, inside)
            for row in range(rows):
                if first < sinks or few < PIECE or first + few > ends[row // groups]:
                    hide(means[row], first, few, sinks, ends[row // groups])
                near, far = 4 * PIECE * row, apart * row + first
                of_all = address(means) + near, address(along) + near, scales, address(profiles) + far
                to = address(masses) + far + 3 * first, address(pooled) + far
                weigh_piece(of_all, reach, row, first, chunks_of(few), to, lanes, beside, peaks)
        start += max(0, taken)
    for row in range(rows):
        totals[row] = lanes[row, :LANES].sum()


@compiled
def share_out(
    masses: Floats, beside: Floats, peaks: Floats, totals: Floats, sinks: int, end: int, whole: Floats,
    blocks: Integers,
) -> None:  # fmt: skip
    """Choose one query's blocks by the mean of its query heads' shares.

    Args:
        masses: (G, R)
        beside: (G, R / 64), of 64 blocks each replaced by what makes shares of their masses
        peaks: (G,), replaced by the least share that counts
        totals: (G,)
        whole: room (R,)
        blocks: (K,), filled, the best ones first; -1 where there was nothing left
    """
    groups, stretches = len(masses), chunks_of(end)
    for group in range(groups):
        inverse, now = np.float32(1.0) / totals[group], beside[group, -1]
        last, factor = now, inverse
        for stretch in range(stretches):
            if beside[group, stretch] != last:
                last = beside[group, stretch]
                factor = two_to(last - now) * inverse
            beside[group, stretch] = factor
        peaks[group] = two_to(np.rint(peaks[group]) - LOW - now) * inverse
    of_masses, factors = (address(masses), 4 * masses.shape[1]), (address(beside), 4 * beside.shape[1])
    add_shares(*of_masses, groups, *factors, address(peaks), address(whole), stretches)
    best_blocks(whole, sinks, end, np.empty(len(blocks), np.float32), blocks)


@compiled
def leave_out(blocks: Integers, masses: Floats, pooled: Floats) -> None:
    """Make nothing of the masses (G, R) of blocks (K,) that are read, in the sums of their sections (G, R), too."""
    for block in blocks:
        if block >= 0:
            masses[:, block] = 0.0
    for block in blocks:
        if block >= 0:
            first = block // SECTION * SECTION
            for group in range(len(masses)):
                mine = masses[group, first : first + SECTION]
                pooled[group, block // SECTION] = (mine[0] + mine[1]) + (mine[2] + mine[3])


@compiled
def edges(sinks: int, end: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last blocks, each first, …, stop - 1, that no whole section between the sinks and an end holds."""
    first = (sinks + SECTION - 1) // SECTION * SECTION
    return (sinks, min(first, end)), (max(first, end // SECTION * SECTION), end)


@compiled
def rest_of(masses: Floats, pooled: Floats, factors: Floats, least: float, sinks: int, end: int, padded: int) -> float:
    """Replace one query head's masses, those of blocks which no section holds (R,) and sums (R,), by shares of all.

    Args:
        factors: (R / 64,), which make them shares
        least: of smaller ones nothing is left
        padded: sections up to which sums are written; nothing is left of those that are not whole

    Returns:
        What they are together.
    """
    front, back = edges(sinks, end)
    pooled[: (sinks + SECTION - 1) // SECTION] = 0.0
    pooled[back[0] // SECTION : padded] = 0.0
    total = scale_sections(address(pooled), address(factors), np.float32(least), chunks_of(end))
    for start, stop in (front, back):
        for block in range(start, stop):
            share = masses[block] * factors[block // CHUNK]
            masses[block] = share if share >= least else 0.0
            total += masses[block]
    return total


@compiled
def row_of(table: Integers, block: int) -> tuple[int, int]:
    """The segment of an index that holds a block, and the block's number in it."""
    segment = 0
    while block >= table[segment, 1]:
        block -= table[segment, 1]
        segment += 1
    return segment, block


@compiled
def add_edge(
    numbers: Small, starts: Starts, sizes: Floats, table: Integers, head: int, weights: Floats, start: int, stop: int,
    slopes: bool, rest: Floats,
) -> None:  # fmt: skip
    """Add values of blocks start, …, stop - 1, fewer than a section, to rest (G, D), times weights (G, R).

    Args:
        numbers, starts, sizes: the queries (G, D) in 8 bits, by `round_queries`
    """
    if start >= stop:
        return
    groups, tile = len(numbers), start // LANES * LANES
    segment, inside = row_of(table, tile)
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
    copy(scales_at(row, part, head, inside), address(scales), 1)
    numbers, starts, sizes = address(short), address(short) + CHUNK, address(short) + 2 * CHUNK
    for query in range(queries):
        further = 4 * CHUNK * query
        to = numbers + further, starts + further, sizes + further
        shorten_tile(address(weights[query]), address(scales), *to, 1)
    words = row[2 + 2 * part] + head * row[0] * channels // 2 + inside // DEEP * (channels // LANES) * SLICE_BYTES
    add_up_rows(numbers, starts, sizes, 4 * CHUNK, 0, words, sums, LANES, LANES)


@compiled
def add_rest(
    numbers: Small, starts: Starts, sizes: Floats, table: Integers, section_table: Integers, head: int, sinks: int,
    ends: Integers, slopes: bool, masses: Floats, pooled: Floats, turned: Floats, short: Floats, scales: Floats,
    rest: Floats,
) -> None:  # fmt: skip
    """Values of what is not read, by weights: masses (Q, R) of single blocks and pooled (Q, R) of sections.

    Args:
        turned, short: room (Q, R)
        scales: of sections' values and of their slopes, by `scales_of` (2, R)
        rest: (Q, D), filled
    """
    groups, count = len(numbers) // len(ends), ends[-1] // SECTION
    rest[:] = 0.0
    add_up_part(section_table, SECTION_VALUES, head, pooled, scales[0], short, rest, count)
    if slopes:
        multiply_part(section_table, SECTION_KEYS, head, numbers, starts, sizes, turned, count)
        by_turn(turned, pooled, count, CHUNK * chunks_of(count))
        add_up_part(section_table, SECTION_SLOPES, head, turned, scales[1], short, rest, count)
    for query in range(len(ends)):
        mine = slice(query * groups, (query + 1) * groups)
        asked = numbers[mine], starts[mine], sizes[mine]
        for start, stop in edges(sinks, ends[query]):
            add_edge(*asked, table, head, masses[mine], start, stop, slopes, rest[mine])


@compiled
def recall_sections(
    queries: Floats, table: Integers, section_table: Integers, head: int, sinks: int, ends: Integers, reach: float,
    log_size: float, slopes: bool, room: Floats, blocks: Integers, weight: Floats, rest: Floats,
) -> None:  # fmt: skip
    """What queries fetch, and what they estimate of the rest by sections; arguments as `recall_few`.

    Args:
        section_table: of the index of sections
        ends: (T,), at least a section each
    """
    rows, groups = len(queries), len(queries) // len(ends)
    numbers, starts, sizes = np.empty(queries.shape, np.int8), np.empty(rows, np.int32), np.empty(rows, np.float32)
    masses, pooled = room[3:][:rows], room[3 + rows :][:rows]
    turned, short = room[3 + 2 * rows :][:rows], room[3 + 3 * rows :][:rows]
    beside, peaks = np.empty((rows, room.shape[1] // CHUNK + 1), np.float32), np.empty(rows, np.float32)
    totals, padded = np.empty(rows, np.float32), CHUNK * chunks_of(ends[-1] // SECTION + CHUNK // SECTION)
    look_at_sections(queries, section_table, head, ends, turned)
    round_queries(queries, numbers, starts, sizes)
    asked = numbers, starts, sizes
    weigh_blocks(*asked, table, head, sinks, ends, reach, slopes, turned, masses, pooled, beside, peaks, totals)
    for query in range(len(ends)):
        mine = slice(query * groups, (query + 1) * groups)
        share_out(masses[mine], beside[mine], peaks[mine], totals[mine], sinks, ends[query], room[0], blocks[query])
        leave_out(blocks[query], masses[mine], pooled[mine])
        for row in range(query * groups, (query + 1) * groups):
            left = rest_of(masses[row], pooled[row], beside[row], peaks[row], sinks, ends[query], padded)
            whole = beside[row, -1] / np.float32(LOG2_E) + np.log(totals[row]) + log_size - reach * reach
            weight[query, row - query * groups] = whole + np.log(left) if left > 0 else NOTHING
            totals[row] = np.float32(1.0) / left if left > 0 else np.float32(0.0)
    add_rest(*asked, table, section_table, head, sinks, ends, slopes, masses, pooled, turned, short, room[1:3], rest)
    for row in range(rows):
        rest[row] *= totals[row]
