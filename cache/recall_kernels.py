"""CPU kernels that look through an index in one call: choose blocks, and estimate what is not read of the others.

They walk through storage by its addresses (`BlockIndex.table`) and return to Python only when all heads are done: a
call from Python, and handing the GIL from thread to thread, cost more than looking through a thousand blocks. Compiled
by Numba when first called. Letters in shapes: H KV heads, T queries, G query heads per KV head, N far blocks, R the
next multiple of 16 and 64 more, K fetched blocks, D channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cache.compiling import compiled
from cache.four_bit_kernels import add_up_rows, multiply_rows, round_queries
from cache.four_bits import LANES
from cache.lane_kernels import NOTHING, address, exponentials, highest

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
STRETCH = 64
"""Blocks that are looked at together for one that is better."""
MEAN, VARIANCE, VALUES, SLOPE_KEYS, SLOPE_VALUES = range(5)
"""Parts of an index for `moments`, in the table's order."""


@compiled
def steps_of(count: int) -> int:
    return (count + LANES - 1) // LANES


@compiled
def sink(best: Floats, blocks: Integers, place: int, count: int) -> None:
    """Let an entry of a heap, the smallest of which comes first, go down to its place among the first `count`."""
    value, block = best[place], blocks[place]
    child = 2 * place + 1
    while child < count:
        if child + 1 < count and best[child + 1] < best[child]:
            child += 1
        if best[child] >= value:
            break
        best[place], blocks[place] = best[child], blocks[child]
        place, child = child, 2 * child + 1
    best[place], blocks[place] = value, block


@compiled
def best_blocks(wanted: Floats, sinks: int, count: int, best: Floats, blocks: Integers) -> None:
    """The blocks from `sinks` on, below `count`, that are wanted most (K,); -1 where there is nothing left.

    Room for 64 more must be behind those that are wanted.
    """
    found = min(len(blocks), max(0, count - sinks))
    for n in range(found):
        best[n], blocks[n] = wanted[sinks + n], sinks + n
    blocks[found:] = -1
    for place in range(found // 2 - 1, -1, -1):
        sink(best, blocks, place, found)
    start = sinks + found
    while found and start < count:  # most stretches hold nothing better
        end = min(start + STRETCH, count)
        if highest(address(wanted) + 4 * start, STRETCH // LANES) > best[0]:
            for n in range(start, end):
                if wanted[n] > best[0]:
                    best[0], blocks[0] = wanted[n], n
                    sink(best, blocks, 0, found)
        start = end


@compiled
def choose_head(scores: Floats, sinks: int, ends: Integers, blocks: Integers, whole: Floats, room: Floats) -> None:
    """The best blocks of one head's queries, by the mean, over its query heads, of their scores' softmax.

    Args:
        scores: (T * G, R); what may not be chosen is written over
        sinks: the first block that may be chosen
        ends: for each query the first one that may not be chosen any more (T,)
        blocks: (T, K), filled; -1 where there was nothing left
        whole, room: (R,)
    """
    groups, best = len(scores) // len(ends), np.empty(blocks.shape[1], np.float32)
    for query in range(len(ends)):
        end = max(0, ends[query])
        steps = steps_of(end)
        wanted = scores[query * groups]
        if groups > 1:
            wanted = whole
            whole[:end] = 0.0
            for group in range(groups):
                mine = scores[query * groups + group]
                mine[:sinks] = NOTHING
                mine[end : steps * LANES] = NOTHING
                total = exponentials(address(mine), highest(address(mine), steps), address(room), steps)
                factor = np.float32(1.0) / np.float32(total)
                for n in range(end):
                    whole[n] += room[n] * factor
        best_blocks(wanted, sinks, end, best, blocks[query])


@compiled
def weigh_head(masses: Floats, sinks: int, ends: Integers, blocks: Integers, weight: Floats) -> None:
    """Shares of the blocks that are not read among themselves, and the logarithm of the mass of all of them.

    Args:
        masses: their logarithms (T * G, R), replaced by the shares, 0 for what is read or may not be
        sinks, ends, blocks: as in `choose_head`
        weight: (T, G), filled
    """
    groups = weight.shape[1]
    for query in range(len(ends)):
        end, chosen = max(sinks, ends[query]), blocks[query]
        steps = steps_of(end)
        for group in range(groups):
            mass = masses[query * groups + group]
            mass[:sinks] = NOTHING
            mass[end : steps * LANES] = NOTHING
            for k in range(len(chosen)):
                if chosen[k] >= 0:
                    mass[chosen[k]] = NOTHING
            peak = np.float32(highest(address(mass), steps))
            if peak <= np.float32(NOTHING):
                mass[:] = 0.0
                weight[query, group] = NOTHING
                continue
            total = np.float32(exponentials(address(mass), peak, address(mass), steps))
            weight[query, group] = peak + np.log(total)
            factor = np.float32(1.0) / total
            for n in range(end):
                mass[n] *= factor
            mass[:sinks] = 0.0
            mass[end:] = 0.0
            for k in range(len(chosen)):
                if chosen[k] >= 0:
                    mass[chosen[k]] = 0.0


@compiled
def judge_moments(means: Floats, variances: Floats, count: int, reach: float, log_size: float) -> None:
    """Products with mean and variance (Q, R) become the logarithm of a block's mass, and its score."""
    step = np.float32(reach)
    for query in range(len(means)):
        mean, variance = means[query], variances[query]
        for n in range(count):
            spread, middle = variance[n], mean[n]
            variance[n] = middle + step * np.sqrt(spread)
            mean[n] = middle + step * np.sqrt(spread + step * step) - step * step + np.float32(log_size)


@compiled
def multiply_part(
    table: Integers, part: int, head: int, numbers: NDArray[np.int16], steps: Floats, products: Floats, count: int
) -> None:
    """Products (Q, R) of a head's queries with the first `count` vectors of a part, whose lanes are rows."""
    start = 0
    for segment in range(len(table)):
        capacity, taken = table[segment, 0], min(table[segment, 1], count - start)
        if taken > 0:
            words = table[segment, 2 + 2 * part] + head * capacity * numbers.shape[1] // 2
            scales = table[segment, 3 + 2 * part] + head * capacity * 4
            multiply_rows(numbers, steps, words, scales, products, start, taken)
            start += taken


@compiled
def add_up_part(table: Integers, part: int, head: int, weights: Floats, sums: Floats, count: int) -> None:
    """Add the first `count` vectors of a part, whose lanes are channels, times weights (Q, R) to sums (Q, D)."""
    start = 0
    for segment in range(len(table)):
        capacity, taken = table[segment, 0], min(table[segment, 1], count - start)
        if taken > 0:
            words = table[segment, 2 + 2 * part] + head * capacity * sums.shape[1] // 2
            scales = table[segment, 3 + 2 * part] + head * capacity * 4
            add_up_rows(weights, words, scales, sums, start, taken)
            start += taken


@compiled
def recall_head(
    queries: Floats, table: Integers, head: int, sinks: int, ends: Integers, reach: float, log_size: float,
    estimates: bool, slopes: bool, room: Floats, blocks: Integers, weight: Floats, rest: Floats,
) -> None:  # fmt: skip
    """What one head of a session fetches and estimates; see `recall_moments`. Arrays are without heads in front."""
    count, rows = max(0, ends[-1]), len(queries)
    numbers, steps = np.empty(queries.shape, np.int16), np.empty(rows, np.float32)
    means, variances, turned, spare = room[0, :rows], room[1, :rows], room[2, :rows], room[3, :rows]
    round_queries(queries * queries, numbers, steps)
    multiply_part(table, VARIANCE, head, numbers, steps, variances, count)
    round_queries(queries, numbers, steps)
    multiply_part(table, MEAN, head, numbers, steps, means, count)
    judge_moments(means, variances, count, reach, log_size)
    choose_head(variances, sinks, ends, blocks, spare[0], turned[0])
    if estimates:
        weigh_head(means, sinks, ends, blocks, weight)
        add_up_part(table, VALUES, head, means, rest, count)
        if slopes:
            multiply_part(table, SLOPE_KEYS, head, numbers, steps, turned, count)
            for query in range(rows):
                for n in range(count):
                    turned[query, n] *= means[query, n]
                turned[query, count:] = 0.0
            add_up_part(table, SLOPE_VALUES, head, turned, rest, count)


@compiled
def recall_moments(
    queries: Floats, borders: Integers, tables: Integers, table_borders: Integers, sinks: int, ends: Integers,
    reach: float, log_size: float, estimates: bool, slopes: bool, room: Floats, blocks: Integers, weight: Floats,
    rest: Floats, first: int, last: int,
) -> None:  # fmt: skip
    """What heads first, …, last - 1 fetch, and what they estimate of the rest; see `cache.landmarks.moments`.

    Args:
        queries: as far blocks see them (H, T * G, D), one session's after the other's; D is a multiple of 16
        borders: queries borders[i], …, borders[i + 1] - 1 are those of session i (sessions + 1,)
        tables: of the sessions' indexes in 4 bits, one after the other, as `BlockIndex.table`
        table_borders: which rows of them are whose (sessions + 1,)
        sinks, ends: as in `choose_head`
        reach, log_size: the largest of a block's keys is expected so many deviations above their mean; log of a block's
            positions
        estimates: whether to estimate what is not read
        slopes: whether mean values turn with the query
        room: (H, 4, most queries of a session * G, R), of which only that of head `first` is used
        blocks: (H, T, K), filled
        weight: the logarithm of the mass of what is estimated (H, T, G), filled
        rest: (H, T * G, D): estimated values are added
    """
    groups = weight.shape[2]
    for i in range(len(borders) - 1):
        begin, end = borders[i], borders[i + 1]
        table = tables[table_borders[i] : table_borders[i + 1]]
        for head in range(first, last):
            recall_head(
                queries[head, begin * groups : end * groups], table, head, sinks, ends[begin:end], reach, log_size,
                estimates, slopes, room[first], blocks[head, begin:end], weight[head, begin:end],
                rest[head, begin * groups : end * groups],
            )  # fmt: skip


@compiled
def choose(scores: Floats, sinks: int, ends: Integers, blocks: Integers, room: Floats, first: int, last: int) -> None:
    """`choose_head` of heads first, …, last - 1.

    Args:
        scores: (H, T * G, R)
        blocks: (H, T, K), filled
        room: (H, 2, R), of which only that of head `first` is used
    """
    for head in range(first, last):
        choose_head(scores[head], sinks, ends, blocks[head], room[first, 0], room[first, 1])
