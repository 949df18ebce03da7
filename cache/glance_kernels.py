"""CPU kernels that choose the best of many landmarks at a glance, and look closely only where that leaves a doubt.

A glance reads the upper halves of a landmark's bits (`cache.planes`). The K likeliest products set a bar; a tile of 16
landmarks is looked at closely, with all bits, if one of them may well reach it, and so are the first ones, which are
not centred. The rule asks for landmarks and their places alone; how many are looked at together changes nothing.
Compiled by Numba when first called. Letters in shapes: Q queries, D channels, K chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from cache.choice_kernels import in_order, sink
from cache.compiling import compiled
from cache.four_bit_kernels import SLICE_BYTES, round_queries
from cache.lane_kernels import F32, I16, LANES, NOTHING, REALS, address, call, load, prefetch, spread
from cache.plane_kernels import DEEP, doubts_of, multiply_planes, near_one
from cache.walk_kernels import steps_of

Floats = NDArray[np.float32]
Small = NDArray[np.int8]
Starts = NDArray[np.int32]
Integers = NDArray[np.int64]
CAPACITY, COUNT, UPPER, SCALES, LOWER, CENTRE = range(6)
"""Columns of `Centred.table`."""
PIECE = 2048
"""Landmarks that are glanced at before their products are sifted, while these are in the nearest cache."""
SOON = 6
"""Tiles: so far before it is looked at closely a tile is asked for."""


def reaches(builder: Any, products: Any, scales: Any, doubt: Any) -> Any:
    """What 16 products may well be."""
    far = builder.fmul(load(builder, scales, REALS), spread(builder, doubt, REALS))
    return builder.fadd(load(builder, products, REALS), far)


@intrinsic  # type: ignore[untyped-decorator]
def may_reach(context: Any, products: Any, scales: Any, doubt: Any, bar: Any) -> Any:
    """Whether one of 16 products with rows of such scales may well be at least as high as a bar."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        products, scales, doubt, bar = arguments
        high = b.fcmp_ordered(">=", reaches(b, products, scales, doubt), spread(b, bar, REALS))
        return b.icmp_unsigned("!=", b.bitcast(high, I16), I16(0))

    return types.boolean(types.intp, types.intp, types.float32, types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def reach(context: Any, products: Any, scales: Any, doubt: Any) -> Any:
    """The largest of what 16 products may well be."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        products, scales, doubt = arguments
        return call(b, f"llvm.vector.reduce.fmax.v{LANES}f32", F32, reaches(b, products, scales, doubt))

    return types.float32(types.intp, types.intp, types.float32), generate


@compiled
def offer(best: Floats, blocks: Integers, value: float, block: int) -> None:
    """Let a block into a heap of the best ones if it is better than the worst of them."""
    if value > best[0]:
        best[0], blocks[0] = value, block
        sink(best, blocks, 0, len(best))


@compiled
def hide(products: Floats, begin: int, sinks: int, end: int) -> int:
    """Let products of blocks begin, … say nothing where these are not in [sinks, end); how many tiles are left."""
    count = max(0, min(len(products), end - begin))
    products[: max(0, min(count, sinks - begin))] = NOTHING
    tiles = steps_of(count)
    products[count : tiles * LANES] = NOTHING
    return tiles


@compiled
def at_centre(query: Floats, table: Integers, head: int) -> np.float32:
    """The product of a query with the centre."""
    total, place = np.float32(0.0), table[-1, CENTRE] + 4 * head * len(query)
    if table[-1, CENTRE]:
        for d in range(len(query)):
            total += query[d] * read_real(place + 4 * d)
    return total


@intrinsic  # type: ignore[untyped-decorator]
def read_real(context: Any, place: Any) -> Any:
    """The fp32 number at an address."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return load(b, arguments[0], F32)

    return types.float32(types.intp), generate


@compiled
def products_at(
    row: Integers, head: int, inside: int, numbers: Small, starts: Starts, sizes: Floats, products: Floats, start: int,
    count: int, closely: bool,
) -> None:  # fmt: skip
    """`multiply_planes` of `count` landmarks of one segment, a row of the table, from `inside` on, a multiple of 16."""
    offset = (head * row[CAPACITY] + inside) // LANES * (numbers.shape[1] // DEEP) * SLICE_BYTES
    scales = row[SCALES] + 4 * (head * row[CAPACITY] + inside)
    where = row[UPPER] + offset, row[LOWER] + offset, scales
    multiply_planes(numbers, starts, sizes, *where, products, start, count, closely)


@compiled
def multiply_all(
    queries: Floats, table: Integers, head: int, numbers: Small, starts: Starts, sizes: Floats, products: Floats,
    count: int,
) -> None:  # fmt: skip
    """Products (Q, R) of a head's queries with the first `count` landmarks, less what all have with the centre."""
    start = 0
    for segment in range(len(table)):
        row = table[segment]
        taken = min(row[COUNT], count - start)
        if taken > 0:
            products_at(row, head, 0, numbers, starts, sizes, products, start, taken, True)
            if not row[CENTRE]:
                for query in range(len(queries)):
                    products[query, start : start + taken] -= at_centre(queries[query], table, head)
            start += taken


@compiled
def choose_at_a_glance(
    queries: Floats, table: Integers, head: int, sinks: int, ends: Integers, blocks: Integers
) -> None:
    """The best blocks of one head's queries (Q, D), each with an end, which rise; arguments as `choose_head`."""
    amount, tiles = len(queries), steps_of(ends[-1])
    numbers, starts = np.empty(queries.shape, np.int8), np.empty(amount, np.int32)
    sizes, doubts = np.empty(amount, np.float32), np.empty(amount, np.float32)
    round_queries(queries, numbers, starts, sizes)
    doubts_of(numbers, sizes, doubts)
    bars = np.full((amount, blocks.shape[1]), NOTHING, np.float32)
    found, likely = np.zeros(amount, np.int64), np.empty((amount, tiles), np.float32)
    places, begins = np.empty((amount, tiles), np.int32), np.empty(len(table), np.int64)
    room, first = np.empty((amount, PIECE), np.float32), 0
    blocks[:] = -1
    for segment in range(len(table)):
        row, begins[segment] = table[segment], first
        there = min(row[COUNT], ends[-1] - first)
        for inside in range(0, there, PIECE):
            count, begin, centred = min(PIECE, there - inside), first + inside, row[CENTRE] != 0
            products_at(row, head, inside, numbers, starts, sizes, room, 0, count, not centred)
            for query in range(amount):
                mine, bar = room[query, :count], bars[query]
                if not centred:
                    mine -= at_centre(queries[query], table, head)
                doubt = doubts[query] if centred else np.float32(0.0)
                scales = row[SCALES] + 4 * (head * row[CAPACITY] + inside)
                for tile in range(hide(room[query], begin, sinks, min(ends[query], begin + count))):
                    at, its = address(mine) + 4 * LANES * tile, scales + 4 * LANES * tile
                    if not centred or may_reach(at, its, doubt, bar[0]):
                        for lane in range(LANES):
                            offer(bar, blocks[query], read_real(at + 4 * lane), begin + tile * LANES + lane)
                        places[query, found[query]] = segment << 16 | (inside // LANES + tile)
                        likely[query, found[query]] = reach(at, its, doubt) if centred else np.float32(-NOTHING)
                        found[query] += 1
        first += max(0, there)
    for query in range(amount):
        look_closely(
            queries[query], table, head, sinks, ends[query], numbers[query : query + 1], starts[query : query + 1],
            sizes[query : query + 1], begins, places[query], likely[query], found[query], bars[query], blocks[query],
        )  # fmt: skip


@compiled
def look_closely(
    query: Floats, table: Integers, head: int, sinks: int, end: int, numbers: Small, starts: Starts, sizes: Floats,
    begins: Integers, places: NDArray[np.int32], likely: Floats, found: int, best: Floats, blocks: Integers,
) -> None:  # fmt: skip
    """The best of one query's tiles that reach the bar, whose first entry of `best` it is.

    Args:
        begins: the first block of each segment
        places: of the tiles, segment << 16 | tile in it, in their order
        likely: what each of them may well reach
        best: (K,), worked with
        blocks: (K,), filled, the best ones first; -1 where there is nothing left
    """
    bar, kept = best[0], 0
    for place in range(found):
        if likely[place] >= bar:
            places[kept] = places[place]
            kept += 1
    best[:], blocks[:] = NOTHING, -1
    room, common = np.empty((1, LANES), np.float32), at_centre(query, table, head)
    length = numbers.shape[1] // DEEP * SLICE_BYTES
    for place in range(kept + SOON):
        if place < kept:
            row, tile = table[places[place] >> 16], places[place] & 0xFFFF
            offset = (head * row[CAPACITY] // LANES + tile) * length
            prefetch(row[UPPER] + offset, length)
            prefetch(row[LOWER] + offset, length)
        if place >= SOON:
            segment, tile = places[place - SOON] >> 16, places[place - SOON] & 0xFFFF
            row, begin = table[segment], begins[segment] + tile * LANES
            products_at(row, head, tile * LANES, numbers, starts, sizes, room, 0, LANES, True)
            if not row[CENTRE]:
                room -= common
            for block in range(max(begin, sinks), min(begin + LANES, end)):
                offer(best, blocks, room[0, block - begin], block)
    in_order(best, blocks, len(blocks))
