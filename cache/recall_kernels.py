"""CPU kernels that look through an index in one call: choose blocks, and estimate what is not read of the others.

They walk through storage by its addresses (`BlockIndex.table`) and return to Python only when all heads are done: a
call from Python, and handing the GIL from thread to thread, cost more than looking through a thousand blocks. Compiled
by Numba when first called. Letters in shapes: H KV heads, T queries, G query heads per KV head, N far blocks, R the
next multiple of 16 and 64 more, K fetched blocks, D channels.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from cache.compiling import compiled
from cache.four_bit_kernels import TOGETHER, add_up_rows, chunks_of, multiply_rows, round_queries
from cache.four_bits import LANES
from cache.lane_kernels import CHUNK, NOTHING, address, copy, exponentials, highest, judge, shorten
from cache.sharing import Shared
from cache.sharing_kernels import FLAG, REAL, WHOLE, array, shared, unpacker

Floats = NDArray[np.float32]
Small = NDArray[np.int8]
Starts = NDArray[np.int32]
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
    """The blocks from `sinks` on, below `count`, that are wanted most (K,), best first; -1 where there is nothing left.

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
    for end in range(found - 1, 0, -1):  # the smallest goes last
        best[0], best[end] = best[end], best[0]
        blocks[0], blocks[end] = blocks[end], blocks[0]
        sink(best, blocks, 0, end)


@compiled
def choose_head(scores: Floats, sinks: int, ends: Integers, blocks: Integers, whole: Floats) -> None:
    """The best blocks of one head's queries, by the mean, over its query heads, of their scores' softmax.

    Args:
        scores: (T * G, R); written over
        sinks: the first block that may be chosen
        ends: for each query the first one that may not be chosen any more (T,)
        blocks: (T, K), filled, the best ones first; -1 where there was nothing left
        whole: room (R,)
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
                total = exponentials(address(mine), highest(address(mine), steps), address(mine), steps)
                factor = np.float32(1.0) / np.float32(total)
                for n in range(end):
                    whole[n] += mine[n] * factor
        best_blocks(wanted, sinks, end, best, blocks[query])


@compiled
def weigh_head(
    masses: Floats, sinks: int, ends: Integers, blocks: Integers, chunks: int, weight: Floats, factors: Floats
) -> None:
    """Weights of the blocks that are not read, and the logarithm of the mass of all of them.

    Args:
        masses: their logarithms (T * G, R), replaced by weights; those of 64 * chunks blocks, as good as 0 for what is
            read, may not be, or is not there
        sinks, ends, blocks: as in `choose_head`
        weight: (T, G), filled
        factors: what makes the weights of a query head one (T * G,), filled; 0 where there is nothing
    """
    groups, padded = weight.shape[1], chunks * CHUNK
    for query in range(len(ends)):
        end, chosen = max(sinks, ends[query]), blocks[query]
        for group in range(groups):
            row = query * groups + group
            mass = masses[row]
            mass[:sinks] = NOTHING
            mass[end:padded] = NOTHING
            for k in range(len(chosen)):
                if chosen[k] >= 0:
                    mass[chosen[k]] = NOTHING
            peak = np.float32(highest(address(mass), padded // LANES))
            total = np.float32(exponentials(address(mass), peak, address(mass), padded // LANES))
            nothing = peak <= np.float32(NOTHING)
            weight[query, group] = NOTHING if nothing else peak + np.log(total)
            factors[row] = np.float32(0.0) if nothing else np.float32(1.0) / total


@compiled
def multiply_part(
    table: Integers, part: int, head: int, numbers: Small, starts: Starts, sizes: Floats, products: Floats, count: int
) -> None:
    """Products (Q, R) of a head's queries with the first `count` vectors of a part, whose lanes are rows."""
    start = 0
    for segment in range(len(table)):
        capacity, taken = table[segment, 0], min(table[segment, 1], count - start)
        if taken > 0:
            words = table[segment, 2 + 2 * part] + head * capacity * numbers.shape[1] // 2
            scales = table[segment, 3 + 2 * part] + head * capacity * 4
            multiply_rows(numbers, starts, sizes, words, scales, products, start, taken)
            start += taken


@compiled
def scales_of(table: Integers, part: int, head: int, count: int, scales: Floats) -> None:
    """The scales of the first `count` vectors of a part, and zeros up to a multiple of 64."""
    start = 0
    for segment in range(len(table)):
        capacity, taken = table[segment, 0], min(table[segment, 1], count - start)
        if taken > 0:
            copy(table[segment, 3 + 2 * part] + head * capacity * 4, address(scales) + 4 * start, steps_of(taken))
            start += taken
    scales[count : chunks_of(count) * CHUNK] = 0.0


@compiled
def add_up_part(
    table: Integers, part: int, head: int, weights: Floats, scales: Floats, short: Floats, sums: Floats, count: int
) -> None:
    """Add the first `count` vectors of a part, whose lanes are channels, times weights to sums (Q, D).

    Args:
        weights: (Q, R), zeros behind `count` up to a multiple of 64
        scales: of the part, by `scales_of`
        short: room (Q, R) for weights in 8 bits: R bytes, and what belongs to chunks of them
    """
    queries, room = weights.shape
    numbers, starts, sizes = address(short), address(short) + room, address(short) + 2 * room
    for query in range(queries):
        offset = 4 * room * query
        shorten(
            address(weights[query]),
            address(scales),
            numbers + offset,
            starts + offset,
            sizes + offset,
            chunks_of(count),
        )
    start = 0
    for segment in range(len(table)):
        capacity, taken = table[segment, 0], min(table[segment, 1], count - start)
        if taken > 0:
            words = table[segment, 2 + 2 * part] + head * capacity * sums.shape[1] // 2
            add_up_rows(numbers, starts, sizes, 4 * room, start, words, sums, taken, CHUNK)
            start += taken


@compiled
def recall_few(
    queries: Floats, table: Integers, head: int, sinks: int, ends: Integers, reach: float, log_size: float,
    estimates: bool, slopes: bool, room: Floats, blocks: Integers, weight: Floats, rest: Floats,
) -> None:  # fmt: skip
    """What one head of a session fetches and estimates; see `recall_moments`. Arrays are without heads in front."""
    count, rows = max(0, ends[-1]), len(queries)
    chunks = chunks_of(count)
    numbers, starts = np.empty(queries.shape, np.int8), np.empty(rows, np.int32)
    sizes, factors = np.empty(rows, np.float32), np.empty(rows, np.float32)
    masses, scores, short, whole = room[3:][:rows], room[3 + rows :][:rows], room[3 + 2 * rows :][:rows], room[0]
    turned = room[3 + 3 * rows :][:rows]
    round_queries(queries * queries, numbers, starts, sizes)
    multiply_part(table, VARIANCE, head, numbers, starts, sizes, scores, count)
    round_queries(queries, numbers, starts, sizes)
    multiply_part(table, MEAN, head, numbers, starts, sizes, masses, count)
    if estimates and slopes:  # along it keys scatter by this much more than their landmark says
        multiply_part(table, SLOPE_KEYS, head, numbers, starts, sizes, turned, count)
        for row in range(rows):
            for n in range(count):
                scores[row, n] += turned[row, n] * turned[row, n]
    for row in range(rows):
        judge(address(masses[row]), address(scores[row]), np.float32(reach), np.float32(log_size), steps_of(count))
    choose_head(scores, sinks, ends, blocks, whole)
    rest[:] = 0.0
    if estimates:
        weigh_head(masses, sinks, ends, blocks, chunks, weight, factors)
        add_up_part(table, VALUES, head, masses, room[1], short, rest, count)
        if slopes:
            for row in range(rows):
                for n in range(count):
                    turned[row, n] *= masses[row, n]
                turned[row, count : chunks * CHUNK] = 0.0
            add_up_part(table, SLOPE_VALUES, head, turned, room[2], short, rest, count)
        for row in range(rows):
            rest[row] *= factors[row]


@compiled
def recall_moments(
    queries: Floats, borders: Integers, tables: Integers, table_borders: Integers, sinks: int, ends: Integers,
    reach: float, log_size: float, estimates: bool, slopes: bool, room: Floats, blocks: Integers, weight: Floats,
    rest: Floats, first: int, last: int,
) -> None:  # fmt: skip
    """What heads first, …, last - 1 fetch, and what they estimate of the rest; see `cache.landmarks.moments`.

    A few queries at a time: their scores stay near, and who is asked together changes nothing.

    Args:
        queries: as far blocks see them (H, T * G, D), one session's after the other's; D is a multiple of 16
        borders: queries borders[i], …, borders[i + 1] - 1 are those of session i (sessions + 1,)
        tables: of the sessions' indexes in 4 bits, one after the other, as `BlockIndex.table`
        table_borders: which rows of them are whose (sessions + 1,)
        sinks, ends: as in `choose_head`; in order for each session
        reach, log_size: the largest of a block's keys is expected so many deviations above their mean; log of a block's
            positions
        estimates: whether to estimate what is not read
        slopes: whether mean values turn with the query
        room: (H, `recall_rows`, R), of which only that of head `first` is used
        blocks: (H, T, K), filled
        weight: the logarithm of the mass of what is estimated (H, T, G), filled if it is
        rest: estimated values (H, T * G, D), filled
    """
    groups = weight.shape[2]
    few = max(1, TOGETHER // groups)
    for i in range(len(borders) - 1):
        table = tables[table_borders[i] : table_borders[i + 1]]
        for head in range(first, last):
            count = max(0, ends[borders[i + 1] - 1])
            if estimates:
                scales_of(table, VALUES, head, count, room[first, 1])
            if estimates and slopes:
                scales_of(table, SLOPE_VALUES, head, count, room[first, 2])
            for begin in range(borders[i], borders[i + 1], few):
                end = min(begin + few, borders[i + 1])
                recall_few(
                    queries[head, begin * groups : end * groups], table, head, sinks, ends[begin:end], reach, log_size,
                    estimates, slopes, room[first], blocks[head, begin:end], weight[head, begin:end],
                    rest[head, begin * groups : end * groups],
                )  # fmt: skip


def recall_rows(groups: int) -> int:
    """Rows of numbers that `recall_moments` works with, for so many query heads of a head."""
    return 3 + 4 * groups * max(1, TOGETHER // groups)


@compiled
def choose_landmarks(
    queries: Floats, borders: Integers, tables: Integers, table_borders: Integers, sinks: int, ends: Integers,
    blocks: Integers, room: Floats, first: int, last: int,
) -> None:  # fmt: skip
    """What heads first, …, last - 1 fetch by products with one landmark of each block; arguments as `recall_moments`.

    Args:
        queries: (H, T * G, W), W a multiple of 8
        room: (H, `choose_rows`, R), of which only that of head `first` is used
    """
    groups = queries.shape[1] // len(ends)
    few = max(1, TOGETHER // groups)
    numbers, starts = np.empty((groups * few, queries.shape[2]), np.int8), np.empty(groups * few, np.int32)
    sizes = np.empty(groups * few, np.float32)
    for i in range(len(borders) - 1):
        table = tables[table_borders[i] : table_borders[i + 1]]
        for head in range(first, last):
            for begin in range(borders[i], borders[i + 1], few):
                end = min(begin + few, borders[i + 1])
                rows = groups * (end - begin)
                round_queries(queries[head, begin * groups : end * groups], numbers[:rows], starts[:rows], sizes[:rows])
                scores, count = room[first, 1:][:rows], max(0, ends[end - 1])
                multiply_part(table, MEAN, head, numbers[:rows], starts[:rows], sizes[:rows], scores, count)
                choose_head(scores, sinks, ends[begin:end], blocks[head, begin:end], room[first, 0])


def choose_rows(groups: int) -> int:
    """Rows of numbers that `choose_landmarks` works with, for so many query heads of a head."""
    return 1 + groups * max(1, TOGETHER // groups)


@compiled
def choose(scores: Floats, sinks: int, ends: Integers, blocks: Integers, room: Floats, first: int, last: int) -> None:
    """`choose_head` of heads first, …, last - 1.

    Args:
        scores: (H, T * G, R), written over
        blocks: (H, T, K), filled
        room: (H, R), of which only that of head `first` is used
    """
    for head in range(first, last):
        choose_head(scores[head], sinks, ends, blocks[head], room[first])


REALS, INTEGERS = np.float32, np.int64
RECALL = (
    array(REALS, 3), array(INTEGERS, 1), array(INTEGERS, 2), array(INTEGERS, 1), WHOLE, array(INTEGERS, 1), REAL, REAL,
    FLAG, FLAG, array(REALS, 3), array(INTEGERS, 3), array(REALS, 3), array(REALS, 3),
)  # fmt: skip
"""Kinds of the arguments of `recall_moments` before the range."""
CHOOSE = (
    array(REALS, 3), array(INTEGERS, 1), array(INTEGERS, 2), array(INTEGERS, 1), WHOLE, array(INTEGERS, 1),
    array(INTEGERS, 3), array(REALS, 3),
)  # fmt: skip
"""The same of `choose_landmarks`."""
unpack_recall, unpack_choose = unpacker(*RECALL), unpacker(*CHOOSE)


def recall_job(arguments: int, first: int, last: int) -> None:
    """`recall_moments` with arguments at an address."""
    recall_moments(*unpack_recall(arguments), first, last)


def choose_job(arguments: int, first: int, last: int) -> None:
    """`choose_landmarks` with arguments at an address."""
    choose_landmarks(*unpack_choose(arguments), first, last)


@functools.cache
def shared_recall() -> Shared:
    """`recall_moments` for `share`."""
    return shared(recall_job, *RECALL)


@functools.cache
def shared_choose() -> Shared:
    """`choose_landmarks` for `share`."""
    return shared(choose_job, *CHOOSE)
