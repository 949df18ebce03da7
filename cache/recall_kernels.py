"""CPU kernels that look through an index in one call: choose blocks, and estimate what is not read of the others.

They walk through storage by its addresses (`BlockIndex.table`) and return to Python only when all heads are done: a
call from Python, and handing the GIL from thread to thread, cost more than looking through a thousand blocks. Compiled
by Numba when first called. Letters in shapes: H KV heads, T queries, G query heads per KV head, N far blocks, R the
next multiple of 16 and 64 more, K fetched blocks, D channels.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from cache.choice_kernels import choose_head, weigh_head
from cache.compiling import compiled
from cache.four_bit_kernels import TOGETHER, chunks_of, round_queries
from cache.lane_kernels import CHUNK, address, judge
from cache.section_kernels import SECTION_SLOPES, SECTION_VALUES, recall_sections
from cache.sections import PAIR, SECTION
from cache.sharing import Shared
from cache.sharing_kernels import FLAG, REAL, WHOLE, array, shared, unpacker
from cache.walk_kernels import (
    MEAN,
    SLOPE_KEYS,
    SLOPE_VALUES,
    VALUES,
    VARIANCE,
    add_squares,
    add_up_part,
    by_turn,
    multiply_part,
    scales_of,
    steps_of,
)

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


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
        add_squares(scores, turned, count)
    for row in range(rows):
        judge(address(masses[row]), address(scores[row]), np.float32(reach), np.float32(log_size), steps_of(count))
    choose_head(scores, sinks, ends, blocks, whole)
    rest[:] = 0.0
    if estimates:
        weigh_head(masses, sinks, ends, blocks, chunks, weight, factors)
        add_up_part(table, VALUES, head, masses, room[1], short, rest, count)
        if slopes:
            by_turn(turned, masses, count, chunks * CHUNK)
            add_up_part(table, SLOPE_VALUES, head, turned, room[2], short, rest, count)
        for row in range(rows):
            rest[row] *= factors[row]


@compiled
def first_beyond(ends: Integers, start: int, stop: int, most: int) -> int:
    """Of queries start, …, stop - 1, whose ends rise, the first one with an end beyond `most`, or `stop`."""
    while start < stop and ends[start] <= most:
        start += 1
    return start


@compiled
def recall_moments(
    queries: Floats, borders: Integers, tables: Integers, table_borders: Integers, pair_tables: Integers,
    pair_borders: Integers, section_tables: Integers, section_borders: Integers, opened_tables: Integers,
    opened_borders: Integers, sinks: int, ends: Integers, most: int, reach: float, log_size: float, pair_reach: float,
    estimates: bool, slopes: bool, room: Floats, blocks: Integers, weight: Floats, rest: Floats, first: int, last: int,
) -> None:  # fmt: skip
    """What heads first, …, last - 1 fetch, and what they estimate of the rest; see `cache.landmarks.moments`.

    A few queries at a time: their scores stay near, and who is asked together changes nothing.

    Args:
        queries: as far blocks see them (H, T * G, D), one session's after the other's; D is a multiple of 16
        borders: queries borders[i], …, borders[i + 1] - 1 are those of session i (sessions + 1,)
        tables: of the sessions' indexes in 4 bits, one after the other, as `BlockIndex.table`
        table_borders: which rows of them are whose (sessions + 1,)
        pair_tables, pair_borders, section_tables, section_borders: the same of their pairs and sections
        opened_tables, opened_borders: the same of what is looked at of pairs that are opened
        sinks, ends: as in `choose_head`; in order for each session
        most: of more blocks than so many pairs are looked at first, and the rest is estimated by sections
        reach, log_size: the largest of a block's keys is expected so many deviations above their mean; log of a block's
            positions
        pair_reach: as `reach`, of a pair's keys
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
        pairs = pair_tables[pair_borders[i] : pair_borders[i + 1]]
        sections = section_tables[section_borders[i] : section_borders[i + 1]]
        opened = opened_tables[opened_borders[i] : opened_borders[i + 1]]
        far = first_beyond(ends, borders[i], borders[i + 1], most)
        for head in range(first, last):
            if estimates and far > borders[i]:
                count = max(0, ends[far - 1])
                scales_of(table, VALUES, head, count, room[first, 1])
                if slopes:
                    scales_of(table, SLOPE_VALUES, head, count, room[first, 2])
            for begin in range(borders[i], far, few):
                end = min(begin + few, far)
                rows = slice(begin * groups, end * groups)
                recall_few(
                    queries[head, rows], table, head, sinks, ends[begin:end], reach, log_size, estimates, slopes,
                    room[first], blocks[head, begin:end], weight[head, begin:end], rest[head, rows],
                )  # fmt: skip
            if far < borders[i + 1]:
                count = ends[borders[i + 1] - 1] // SECTION
                scales_of(sections, SECTION_VALUES, head, count, room[first, 1])
                scales_of(sections, SECTION_SLOPES, head, count, room[first, 2])
            for begin in range(far, borders[i + 1], few):
                end = min(begin + few, borders[i + 1])
                rows = slice(begin * groups, end * groups)
                recall_sections(
                    queries[head, rows], table, pairs, sections, opened, head, sinks, ends[begin:end],
                    (reach, pair_reach), (log_size, log_size + math.log(PAIR)), room[first], blocks[head, begin:end],
                    weight[head, begin:end], rest[head, rows],
                )  # fmt: skip


def recall_rows(groups: int) -> int:
    """Rows of numbers that `recall_moments` works with, for so many query heads of a head."""
    return 3 + 4 * groups * max(1, TOGETHER // groups)


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
    array(REALS, 3), array(INTEGERS, 1), array(INTEGERS, 2), array(INTEGERS, 1), array(INTEGERS, 2), array(INTEGERS, 1),
    array(INTEGERS, 2), array(INTEGERS, 1), array(INTEGERS, 2), array(INTEGERS, 1), WHOLE, array(INTEGERS, 1), WHOLE,
    REAL, REAL, REAL, FLAG, FLAG, array(REALS, 3), array(INTEGERS, 3), array(REALS, 3), array(REALS, 3),
)  # fmt: skip
"""Kinds of the arguments of `recall_moments` before the range."""
unpack_recall = unpacker(*RECALL)


def recall_job(arguments: int, first: int, last: int) -> None:
    """`recall_moments` with arguments at an address."""
    recall_moments(*unpack_recall(arguments), first, last)


@functools.cache
def shared_recall() -> Shared:
    """`recall_moments` for `share`."""
    return shared(recall_job, *RECALL)
