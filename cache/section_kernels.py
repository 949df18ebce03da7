"""CPU kernels for many blocks: pairs of them are looked at first, the best ones opened, the others told by sections.

Of every pair that a whole section holds its mass is estimated. The best ones are opened (`cache.opening_kernels`), and
so are pairs at the edges, which no whole section holds, for it reaches into the sinks or beyond a query's end. Of their
blocks those with the largest masses are read; of what is left each section's mean value stands for its blocks, but
blocks at the edges have values of their own. Compiled by Numba when first called. Letters in shapes: T queries, G query
heads per KV head, F fours of these, Q = T * G, R room for all blocks (`cache.recall_kernels`), P opened pairs, K chosen
blocks, D channels.
"""

from __future__ import annotations

import numpy as np

from cache.compiling import compiled
from cache.four_bit_kernels import add_up_rows, chunks_of, round_queries
from cache.four_bits import LANES, LARGEST
from cache.lane_kernels import CHUNK, LOG2_E, NOTHING, add_times, address, copy, dot, shorten_tile
from cache.mass_kernels import add_shares, pool_sections
from cache.opened import WIDE
from cache.opening_kernels import (
    ABOVE,
    HIGH,
    LOW,
    choose_opened,
    edges,
    find_pairs,
    give_back,
    list_pairs,
    room_for,
    two_to,
    weigh_opened,
    whole_sections,
)
from cache.pair_kernels import HEADS, LYING
from cache.sections import PAIRS, SECTION
from cache.usual import narrow
from cache.walk_kernels import (
    SLOPE_KEYS,
    SLOPE_VALUES,
    VALUES,
    Floats,
    Integers,
    Small,
    Starts,
    add_up_part,
    by_turn,
    multiply_at,
    multiply_part,
    scales_at,
    words_at,
)
from cache.weighing_kernels import weigh_pairs

SECTION_VALUES, SECTION_KEYS, SECTION_SLOPES = range(3)
"""Parts of an index of sections, in its table's order."""
PROFILE, KEYS_DIRECTIONS, VALUES_DIRECTIONS = range(2 + 2 * 5, 2 + 2 * 5 + 3)
"""Columns behind the parts of an index of blocks: where it lies what is usual (`cache.usual`)."""
narrow_width = compiled(narrow)


@compiled
def look_at_profile(queries: Floats, profile: int, head: int) -> Floats:
    """Products (Q,) of squares of queries (Q, D) with a profile (H, D) that lies there, for scales.

    Of a variance its scale is kept, which is so much smaller than its size.
    """
    rows, dim = queries.shape
    told, squares = np.empty(rows, np.float32), queries * queries
    for row in range(rows):
        told[row] = dot(address(squares[row]), profile + 4 * dim * head, dim // LANES) * LARGEST
    return told


@compiled
def add_product(vectors: Floats, matrix: int, head: int, to: Floats) -> None:
    """Add to rows (Q, M) the products of vectors (Q, N) with a head's matrix of those (H, N, M) that lie there."""
    count, width = vectors.shape[1], to.shape[1]
    for row in range(len(vectors)):
        for place in range(count):
            lies = matrix + 4 * width * (count * head + place)
            add_times(address(to[row]), lies, vectors[row, place], width // LANES)


@compiled
def share_out(
    masses: Floats, beside: Floats, peaks: Floats, totals: Floats, end: int, factors: Floats, whole: Floats
) -> None:
    """The sums, over one query's heads, of the shares that pairs have of all pairs.

    Args:
        masses: (G, R)
        beside: (G, R / 64)
        peaks, totals: (G,)
        factors: room (G, R / 64)
        whole: (R,), filled
    """
    groups, stretches = len(masses), chunks_of(end // SECTION * PAIRS)
    floors = np.empty(groups, np.float32)
    for group in range(groups):
        inverse, now = np.float32(1.0) / totals[group], beside[group, -1]
        scale(beside[group], now, inverse, stretches, factors[group])
        floors[group] = two_to(np.rint(peaks[group]) - LOW - now) * inverse
    of_masses, of_factors = (address(masses), 4 * masses.shape[1]), (address(factors), 4 * factors.shape[1])
    add_shares(*of_masses, groups, *of_factors, address(floors), address(whole), stretches)


@compiled
def scale(beside: Floats, now: float, factor: float, stretches: int, factors: Floats) -> None:
    """What makes masses beside other powers (R / 64,) masses beside the present one, times a factor: (R / 64,)."""
    last, mine = now, np.float32(factor)
    for stretch in range(stretches):
        if beside[stretch] != last:
            last = beside[stretch]
            mine = two_to(last - now) * np.float32(factor)
        factors[stretch] = mine


@compiled
def leave_out(
    masses: Floats, beside: Floats, now: float, pairs: Integers, count: int, sinks: int, end: int, least: float,
    factors: Floats, pooled: Floats, padded: int,
) -> float:  # fmt: skip
    """Sums by sections (R,) of one query head's pairs (R,) that were not opened, and what they are together.

    Args:
        beside: (R / 64,)
        now: the power beside which they are told
        pairs: that were opened, `count` of them
        least: of smaller sums nothing is left
        factors: room (R / 64,)
        padded: sections up to which sums are written
    """
    start, stop = whole_sections(sinks, end)
    if stop <= start:
        pooled[:padded] = np.float32(0.0)
        return 0.0
    stretches = chunks_of(PAIRS * stop)
    masses[: PAIRS * start] = np.float32(0.0)
    masses[PAIRS * stop : CHUNK * stretches] = np.float32(0.0)
    for place in range(count):
        masses[pairs[place]] = np.float32(0.0)
    scale(beside, now, np.float32(1.0), stretches, factors)
    pooled[CHUNK // PAIRS * stretches : padded] = np.float32(0.0)
    return pool_sections(address(masses), address(factors), np.float32(least), address(pooled), stretches)


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
    rest: Floats,
) -> None:  # fmt: skip
    """Add values of blocks start, …, stop - 1, fewer than a section, to rest (G, D), times weights (G, SECTION).

    Args:
        numbers, starts, sizes: the queries (G, D) in 8 bits, by `round_queries`
    """
    if start >= stop:
        return
    groups, tile = len(numbers), start // LANES * LANES
    segment, inside = row_of(table, tile)
    mine, along = np.zeros((groups, CHUNK), np.float32), np.empty((groups, CHUNK), np.float32)
    mine[:, start - tile : stop - tile] = weights[:, : stop - start]
    add_tile(table[segment], VALUES, head, inside, mine, rest)
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
    words = words_at(row, part, head, inside, channels)
    add_up_rows(numbers, starts, sizes, 4 * CHUNK, 0, words, sums, LANES, LANES)


@compiled
def add_sections(
    numbers: Small, starts: Starts, sizes: Floats, table: Integers, head: int, count: int, pooled: Floats,
    turned: Floats, short: Floats, scales: Floats, directions: int, rest: Floats,
) -> None:  # fmt: skip
    """Add values of the first `count` sections, by weights pooled (Q, R), to rest (Q, D).

    Args:
        numbers, starts, sizes: what the queries are in the directions of keys, in 8 bits, by `round_queries`
        table: of the index of sections
        turned, short: room (Q, R)
        scales: of sections' values and of their slopes, by `scales_of` (2, R)
        directions: address of those of values
    """
    sums = np.zeros(numbers.shape, np.float32)
    add_up_part(table, SECTION_VALUES, head, pooled, scales[0], short, sums, count)
    multiply_part(table, SECTION_KEYS, head, numbers, starts, sizes, turned, count)
    by_turn(turned, pooled, count, CHUNK * chunks_of(count))
    add_up_part(table, SECTION_SLOPES, head, turned, scales[1], short, sums, count)
    add_product(sums, directions, head, rest)


@compiled
def add_edges(
    numbers: Small, starts: Starts, sizes: Floats, table: Integers, head: int, sinks: int, ends: Integers,
    apart: Floats, rest: Floats,
) -> None:  # fmt: skip
    """Add values of blocks that no whole section holds, by weights apart (Q, 2, SECTION), to rest (Q, D)."""
    groups = len(numbers) // len(ends)
    for query in range(len(ends)):
        mine = slice(query * groups, (query + 1) * groups)
        asked = numbers[mine], starts[mine], sizes[mine]
        front, back = edges(sinks, ends[query])
        add_edge(*asked, table, head, apart[mine, 0], front[0], front[1], rest[mine])
        add_edge(*asked, table, head, apart[mine, 1], back[0], back[1], rest[mine])


@compiled
def widened(numbers: Small, starts: Starts, sizes: Floats, groups: int) -> tuple[Small, Starts, Floats]:
    """Queries (Q, D) in 8 bits with channels and heads as `weigh_opened` takes them: T * F * 4 rows."""
    queries, heads = len(numbers) // groups, (groups + HEADS - 1) // HEADS * HEADS
    channels = (numbers.shape[1] + WIDE - 1) // WIDE * WIDE
    wide, begun = np.zeros((queries * heads, channels), np.int8), np.zeros(queries * heads, np.int32)
    scales = np.zeros(queries * heads, np.float32)
    for query in range(queries):
        for group in range(groups):
            to, row = query * heads + group, query * groups + group
            wide[to, : numbers.shape[1]] = numbers[row]
            begun[to], scales[to] = starts[row], sizes[row]
    return wide, begun, scales


@compiled
def recall_sections(
    queries: Floats, table: Integers, pair_table: Integers, section_table: Integers, opened_table: Integers, head: int,
    sinks: int, ends: Integers, reaches: tuple[float, float], log_sizes: tuple[float, float], room: Floats,
    blocks: Integers, weight: Floats, rest: Floats,
) -> None:  # fmt: skip
    """What queries fetch, and what they estimate of the rest by pairs and sections; arguments as `recall_few`.

    Args:
        pair_table, section_table: of the indexes of pairs and of sections
        opened_table: `BlockIndex.opened_table`
        ends: (T,), at least `BEGINNING` each
        reaches, log_sizes: of a block and of a pair
    """
    rows, groups = len(queries), len(queries) // len(ends)
    numbers, starts, sizes = np.empty(queries.shape, np.int8), np.empty(rows, np.int32), np.empty(rows, np.float32)
    masses, pooled = room[3:][:rows], room[3 + rows :][:rows]
    turned, short = room[3 + 2 * rows :][:rows], room[3 + 3 * rows :][:rows]
    beside, peaks = np.empty((rows, room.shape[1] // CHUNK + 1), np.float32), np.empty(rows, np.float32)
    factors, apart = np.empty((groups, beside.shape[1]), np.float32), np.empty((rows, 2, SECTION), np.float32)
    totals, padded = np.empty(rows, np.float32), CHUNK * chunks_of(ends[-1] // SECTION + CHUNK // SECTION)
    hiding = np.array([[0.0, 0.0], [NOTHING, 0.0], [0.0, NOTHING], [NOTHING, NOTHING]], np.float32)
    pairs, lying = np.empty(room_for(blocks.shape[1]), np.int64), np.empty((room_for(blocks.shape[1]), LYING), np.int64)
    fours = (groups + HEADS - 1) // HEADS
    base = log_sizes[1] - reaches[1] * reaches[1]
    shift = (log_sizes[0] - reaches[0] * reaches[0] - base) * LOG2_E
    told = look_at_profile(queries, table[0, PROFILE], head)
    narrow_queries = np.zeros((rows, narrow_width(queries.shape[1])), np.float32)
    add_product(queries, table[0, KEYS_DIRECTIONS], head, narrow_queries)
    looking = np.empty(narrow_queries.shape, np.int8), np.empty(rows, np.int32), np.empty(rows, np.float32)
    round_queries(narrow_queries, *looking)
    weigh_pairs(*looking, pair_table, head, sinks, ends, reaches[1], told, masses, beside, peaks, totals)
    round_queries(queries, numbers, starts, sizes)
    wide, begun, scales = widened(numbers, starts, sizes, groups)
    asked = numbers, starts, sizes
    for query in range(len(ends)):
        mine, end = slice(query * groups, (query + 1) * groups), ends[query]
        left, least, best = totals[mine], np.empty(groups, np.float32), np.empty(groups, np.float32)
        if end <= sinks:
            blocks[query], weight[query] = -1, NOTHING
            apart[mine], pooled[mine, :padded], left[:] = 0.0, 0.0, 0.0
            continue
        share_out(masses[mine], beside[mine], peaks[mine], left, end, factors, room[0])
        count = list_pairs(room[0], groups, sinks, end, blocks.shape[1], pairs)
        find_pairs(opened_table, head, wide.shape[1], pairs, count, sinks, end, hiding, lying)
        steps, of_query = (count + 1) // 2, slice(query * HEADS * fours, (query + 1) * HEADS * fours)
        opened = np.empty((fours, steps + 1, LANES), np.float32)
        of_opened = wide[of_query], begun[of_query], scales[of_query], told[mine], lying, count, steps
        weigh_opened(*of_opened, reaches[0], shift, beside[mine], opened, best)
        moved = False
        for group in range(groups):
            row = query * groups + group
            peak, now = max(peaks[row], best[group]), beside[row, -1]
            if best[group] > now + HIGH:
                now, moved = np.rint(best[group]), True
            asked_for = pairs, count, sinks, end, two_to(np.rint(peak) - LOW - now)
            left[group] = leave_out(masses[row], beside[row], now, *asked_for, factors[group], pooled[row], padded)
            if left[group] == 0:  # pairs had seemed to weigh more than their blocks
                peak = best[group]
                if now > peak + ABOVE:
                    now, moved = np.rint(peak), True
            beside[row, -1], least[group] = now, two_to(np.rint(peak) - LOW - now)
        if moved:
            weigh_opened(*of_opened, reaches[0], shift, beside[mine], opened, best)
        choose_opened(opened, steps, pairs, count, sinks, end, left, least, blocks[query])
        give_back(opened, pairs, count, sinks, end, least, pooled[mine], apart[mine], left)
        for group in range(groups):
            whole = beside[query * groups + group, -1] / np.float32(LOG2_E) + base
            weight[query, group] = whole + np.log(left[group]) if left[group] > 0 else NOTHING
            left[group] = np.float32(1.0) / left[group] if left[group] > 0 else np.float32(0.0)
    rest[:] = 0.0
    of_values = turned, short, room[1:3], table[0, VALUES_DIRECTIONS]
    add_sections(*looking, section_table, head, ends[-1] // SECTION, pooled, *of_values, rest)
    add_edges(*asked, table, head, sinks, ends, apart, rest)
    for row in range(rows):
        rest[row] *= totals[row]
