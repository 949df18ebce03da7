"""CPU kernels that choose the best of many landmarks at a glance, and look closely only where that leaves a doubt.

A glance reads the upper halves of a landmark's bits (`cache.planes`). The K likeliest products set a bar; a tile of 16
landmarks is looked at closely, with all bits, if one of them may well reach it. So are the first ones, always, which
set no bar. The rule asks for landmarks and their places alone; how many are looked at together changes nothing.
Compiled by Numba when first called. Letters in shapes: Q queries, D channels, K chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from cache.choice_kernels import in_order, sink
from cache.compiling import compiled
from cache.four_bit_kernels import SLICE_BYTES, round_queries
from cache.lane_kernels import (
    LANES,
    NOTHING,
    REALS,
    address,
    highest,
    load,
    number_at,
    over_lanes,
    plus_product,
    prefetch,
    spread,
    store,
)
from cache.plane_kernels import DEEP, SCALE_BYTES, glance_on, glancing, load_scales, multiply_closely
from cache.walk_kernels import steps_of

Floats = NDArray[np.float32]
Small = NDArray[np.int8]
Starts = NDArray[np.int32]
Integers = NDArray[np.int64]
Tiles = NDArray[np.int32]
CAPACITY, COUNT, UPPER, SCALES, LOWER, CENTRE = range(6)
"""Columns of `Centred.table`."""
SOON = 6
"""Tiles: so far before it is looked at closely a tile is asked for."""


@intrinsic  # type: ignore[untyped-decorator]
def reach(context: Any, products: Any, scales: Any, doubt: Any) -> Any:
    """The largest of what 16 products with rows of such scales may well be."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        products, scales, doubt = arguments
        far = plus_product(b, load(b, products, REALS), load_scales(b, scales), spread(b, doubt, REALS))
        return over_lanes(b, "fmax", far)

    return types.float32(types.intp, types.intp, types.float32), generate


@compiled
def offer_tile(best: Floats, blocks: Integers, products: int, begin: int, sinks: int, end: int) -> None:
    """Let those of 16 blocks from `begin` on into a heap of the best ones that are better than the worst of them.

    Products lie at an address; those of blocks that are not in [sinks, end) are lost.
    """
    if begin < sinks or begin + LANES > end:
        for lane in range(LANES):
            if not sinks <= begin + lane < end:
                write_real(products + 4 * lane, np.float32(NOTHING))
    if highest(products, 1) > best[0]:
        for lane in range(LANES):
            value = number_at(products + 4 * lane)
            if value > best[0]:
                best[0], blocks[0] = value, begin + lane
                sink(best, blocks, 0, len(best))


@compiled
def at_centre(query: Floats, table: Integers, head: int) -> np.float32:
    """The product of a query with the centre."""
    total, place = np.float32(0.0), table[-1, CENTRE] + 4 * head * len(query)
    if table[-1, CENTRE]:
        for d in range(len(query)):
            total += query[d] * number_at(place + 4 * d)
    return total


@intrinsic  # type: ignore[untyped-decorator]
def write_real(context: Any, place: Any, value: Any) -> Any:
    """Write an fp32 number to an address."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        store(b, arguments[1], arguments[0])
        return context.get_dummy_value()

    return types.void(types.intp, types.float32), generate


@compiled
def closely(
    row: Integers, head: int, inside: int, numbers: Small, starts: Starts, sizes: Floats, products: Floats, start: int,
    count: int,
) -> None:  # fmt: skip
    """`multiply_closely` of `count` landmarks of one segment, a row of the table, from a multiple of 16 on."""
    offset = (head * row[CAPACITY] + inside) // LANES * (numbers.shape[1] // DEEP) * SLICE_BYTES
    scales = row[SCALES] + SCALE_BYTES * (head * row[CAPACITY] + inside)
    multiply_closely(numbers, starts, sizes, row[UPPER] + offset, row[LOWER] + offset, scales, products, start, count)


@compiled
def multiply_all(
    queries: Floats, table: Integers, head: int, numbers: Small, starts: Starts, sizes: Floats, products: Floats,
    ends: Integers,
) -> None:  # fmt: skip
    """Products (Q, R) of a head's queries with landmarks up to their ends, less what all have with the centre.

    Who sees none behind the first ones gets products as they are: whether there is a centre yet must not matter.

    Args:
        ends: (T,), of the first Q / T queries, of the next ones, and so on; the last one is the largest
    """
    start, count, groups, plain = 0, max(0, ends[-1]), len(queries) // len(ends), 0
    for segment in range(len(table)):
        plain += 0 if table[segment, CENTRE] else table[segment, COUNT]
    for segment in range(len(table)):
        row = table[segment]
        taken = min(row[COUNT], count - start)
        if taken > 0:
            closely(row, head, 0, numbers, starts, sizes, products, start, taken)
            if not row[CENTRE]:
                for query in range(len(queries)):
                    if ends[query // groups] > plain:
                        products[query, start : start + taken] -= at_centre(queries[query], table, head)
            start += taken


@compiled
def choose_at_a_glance(
    queries: Floats, table: Integers, head: int, sinks: int, ends: Integers, blocks: Integers
) -> None:
    """The best blocks of one head's queries (Q, D), one for each end; arguments as `choose_head`."""
    amount, tiles = len(queries), steps_of(ends.max()) + 1
    numbers, starts = np.empty(queries.shape, np.int8), np.empty(amount, np.int32)
    sizes, found = np.empty(amount, np.float32), np.zeros(amount, np.int64)
    bars = np.full((amount, blocks.shape[1]), NOTHING, np.float32)
    places, likely = np.empty((amount, tiles), np.int32), np.empty((amount, tiles), np.float32)
    begins, first = np.empty(len(table), np.int64), 0
    round_queries(queries, numbers, starts, sizes)
    blocks[:] = -1
    for segment in range(len(table)):
        begins[segment] = first
        if table[segment, CENTRE]:
            for query in range(amount):  # while the segment is in a near cache
                found[query] = sift(
                    numbers[query], starts[query], sizes[query], table[segment], segment, head, first, sinks,
                    ends[query], bars[query], blocks[query], places[query], likely[query], found[query],
                )  # fmt: skip
        first += table[segment, COUNT]
    for query in range(amount):
        mine = slice(query, query + 1)
        look_closely(
            queries[query], table, head, sinks, ends[query], numbers[mine], starts[mine], sizes[mine], begins,
            places[query], likely[query], found[query], bars[query], blocks[query],
        )  # fmt: skip


@compiled
def sift(
    numbers: Small, start: int, size: float, row: Integers, segment: int, head: int, first: int, sinks: int, end: int,
    bar: Floats, blocks: Integers, places: Tiles, likely: Floats, found: int,
) -> int:  # fmt: skip
    """Glance at one segment with one query, and note the tiles that may well reach the bar as it is so far.

    Args:
        numbers, start, size: the query, as `round_queries` makes it
        first: the segment's first block
        bar: (K,), a heap of the best products so far; with it goes `blocks` (K,)
        places, likely: of the tiles that were noted, segment << 16 | tile in it, and what each may well reach
        found: how many there are

    Returns:
        How many there are then
    """
    there, slices = min(row[COUNT], end - first), len(numbers) // DEEP
    upper = row[UPPER] + head * row[CAPACITY] // LANES * slices * SLICE_BYTES
    scales, room = row[SCALES] + SCALE_BYTES * head * row[CAPACITY], np.empty(2 * LANES, np.float32)
    begin, half, doubt = glancing(numbers, start, size)
    pair, pairs = 0, (there + 2 * LANES - 1) // (2 * LANES)
    while pair < pairs:
        pair = glance_on(
            upper, slices, address(numbers), begin, half, doubt, scales, bar[0], address(room), pair, pairs
        )
        if pair < pairs:
            for tile in range(2 * pair, 2 * pair + 2):
                at = address(room) + 4 * LANES * (tile - 2 * pair)
                offer_tile(bar, blocks, at, first + LANES * tile, sinks, end)
                high = reach(at, scales + SCALE_BYTES * LANES * tile, doubt)
                if high >= bar[0]:
                    places[found], likely[found] = segment << 16 | tile, high
                    found += 1
            pair += 1
    return found


@compiled
def look_closely(
    query: Floats, table: Integers, head: int, sinks: int, end: int, numbers: Small, starts: Starts, sizes: Floats,
    begins: Integers, places: Tiles, likely: Floats, found: int, best: Floats, blocks: Integers,
) -> None:  # fmt: skip
    """The best of the first blocks, and of one query's tiles that may well reach the bar, the first of `best`.

    Args:
        begins: the first block of each segment
        places, likely, found: as in `sift`
        best: (K,), worked with
        blocks: (K,), filled, the best ones first; -1 where there is nothing left
    """
    bar, kept, room = best[0], 0, np.empty((1, LANES), np.float32)
    common = at_centre(query, table, head)
    for place in range(found):
        if likely[place] >= bar:
            places[kept] = places[place]
            kept += 1
    best[:], blocks[:] = NOTHING, -1
    for segment in range(len(table)):
        if not table[segment, CENTRE]:
            for tile in range(steps_of(table[segment, COUNT])):
                closely(table[segment], head, tile * LANES, numbers, starts, sizes, room, 0, LANES)
                room -= common
                offer_tile(best, blocks, address(room), begins[segment] + tile * LANES, sinks, end)
    length = numbers.shape[1] // DEEP * SLICE_BYTES
    for place in range(kept + SOON):
        if place < kept:
            row, tile = table[places[place] >> 16], places[place] & 0xFFFF
            offset = (head * row[CAPACITY] // LANES + tile) * length
            prefetch(row[UPPER] + offset, length)
            prefetch(row[LOWER] + offset, length)
        if place >= SOON:
            segment, tile = places[place - SOON] >> 16, places[place - SOON] & 0xFFFF
            closely(table[segment], head, tile * LANES, numbers, starts, sizes, room, 0, LANES)
            offer_tile(best, blocks, address(room), begins[segment] + tile * LANES, sinks, end)
    in_order(best, blocks, len(blocks))
