"""CPU kernels that choose the best of many landmarks, and look only at those that lie in the likeliest tiles.

Of whole stretches (`cache.stretches`) a query looks at the means of tiles, and opens one in eight. All others, first
ones and those behind the last whole stretch, it looks at one by one. Which stretches are whole follows from the query's
end, and how many queries are looked at together changes nothing. Compiled by Numba when first called. Letters in
shapes: Q queries, D channels, K chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from cache.best_kernels import best_of, lowest_bit, where_larger
from cache.centred import FIRST
from cache.choice_kernels import in_order, sink
from cache.compiling import compiled
from cache.four_bit_kernels import SLICE_BYTES, multiply_rows, round_queries
from cache.four_bits import DEEP, SCALE_BYTES
from cache.lane_kernels import (
    CHUNK,
    LANES,
    NOTHING,
    add_times,
    address,
    as_whole,
    dot,
    highest,
    lift,
    number_at,
    prefetch,
    prefetch_behind,
    store,
)
from cache.listed_kernels import LISTED, listed_kernel
from cache.stretches import EACH, OPENED
from cache.walk_kernels import steps_of

Floats = NDArray[np.float32]
Small = NDArray[np.int8]
Starts = NDArray[np.int32]
Integers = NDArray[np.int64]
CAPACITY, COUNT, WORDS, SCALES, CENTRE = range(5)
"""Columns of `Centred.table`."""
TILES, ROWS, ROW_SCALES, MEANS, MEAN_SCALES, REACHES, NUMBERS = range(7)
"""Columns of `Stretches.table`."""
SOON = 20
"""Tiles: so far before it is looked at a tile is asked for."""
PIECE = 32
"""Tiles that are multiplied before their products are looked at, a multiple of 4."""
NONE, LATER = -1, -2
"""A block that is none, and the first one of opened tiles while their numbers have not been read; others are below."""

listed = listed_kernel(SOON)


@intrinsic  # type: ignore[untyped-decorator]
def write_real(context: Any, place: Any, value: Any) -> Any:
    """Write an fp32 number to an address."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        store(b, arguments[1], arguments[0])
        return context.get_dummy_value()

    return types.void(types.intp, types.float32), generate


@compiled
def offer_row(best: Floats, blocks: Integers, products: int, begin: int, sinks: int, end: int) -> None:
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
def block_at(place: int) -> np.int32:
    """A block's number, which lies at an address."""
    return as_whole(number_at(place))


@compiled
def offer_opened(
    best: Floats, blocks: Integers, products: int, first: int, count: int, whose: Integers, sinks: int
) -> None:
    """Let those of the blocks of opened tiles first, …, first + count - 1 that are better than the worst into the heap.

    Products lie at an address, and something that is not better behind them up to a multiple of 64. Numbers of a tile's
    blocks lie at one of `whose`. They are read where they may be those of sinks; else the heap is told which block of
    all opened tiles it is, for most of them have to leave it again.
    """
    for step in range(0, count, CHUNK // LANES):
        bits = where_larger(products + 4 * LANES * step, best[0])
        while bits:
            place = LANES * step + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            value, number = number_at(products + 4 * place), whose[first + place // LANES] + 4 * (place % LANES)
            if value > best[0] and (sinks <= FIRST or block_at(number) >= sinks):
                prefetch(number, 1)
                best[0], blocks[0] = value, LATER - LANES * first - place
                sink(best, blocks, 0, len(best))


@compiled
def at_centre(query: Floats, table: Integers, head: int) -> np.float32:
    """The product of a query with the centre."""
    total, place = np.float32(0.0), table[-1, CENTRE] + 4 * head * len(query)
    if table[-1, CENTRE]:
        for d in range(len(query)):
            total += query[d] * number_at(place + 4 * d)
    return total


@compiled
def plain_rows(table: Integers) -> int:
    """How many rows there are that are as they were."""
    count = 0
    for segment in range(len(table)):
        count += 0 if table[segment, CENTRE] else table[segment, COUNT]
    return count


@compiled
def multiply_segment(
    row: Integers, head: int, inside: int, numbers: Small, starts: Starts, sizes: Floats, products: Floats, start: int,
    count: int,
) -> None:  # fmt: skip
    """`multiply_rows` of `count` landmarks of one segment, a row of the table, from a multiple of 16 on."""
    first = head * row[CAPACITY] + inside
    words = row[WORDS] + first // LANES * (numbers.shape[1] // DEEP) * SLICE_BYTES
    multiply_rows(numbers, starts, sizes, words, row[SCALES] + SCALE_BYTES * first, products, start, count)


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
    start, count, groups, plain = 0, max(0, ends[-1]), len(queries) // len(ends), plain_rows(table)
    for segment in range(len(table)):
        row = table[segment]
        taken = min(row[COUNT], count - start)
        if taken > 0:
            multiply_segment(row, head, 0, numbers, starts, sizes, products, start, taken)
            if not row[CENTRE]:
                for query in range(len(queries)):
                    if ends[query // groups] > plain:
                        products[query, start : start + taken] -= at_centre(queries[query], table, head)
            start += taken


@compiled
def tiles_opened(tiles: int, chosen: int) -> int:
    """See `cache.stretches.opened`."""
    return min(tiles, max(tiles // OPENED, EACH * chosen))


@compiled
def choose_by_tiles(
    queries: Floats, table: Integers, stretches: Integers, head: int, sinks: int, ends: Integers, blocks: Integers
) -> None:
    """The best blocks of one head's queries (Q, D), one for each end; arguments as `choose_landmarks`."""
    numbers, starts = np.empty(queries.shape, np.int8), np.empty(len(queries), np.int32)
    sizes, best = np.empty(len(queries), np.float32), np.empty(blocks.shape[1], np.float32)
    plain, tiles = plain_rows(table), len(stretches) * stretches[0, TILES] if len(stretches) else 0
    alone = max(plain, ends.max() - plain - LANES * tiles)  # those that no stretch holds, or one that is not whole yet
    each = tiles // max(1, len(stretches))
    room = max(steps_of(max(alone, LANES * each)) * LANES, tiles, LANES * PIECE)
    products, opened = np.empty((1, room + CHUNK), np.float32), np.empty(tiles_opened(tiles, len(best)), np.int64)
    round_queries(queries, numbers, starts, sizes)
    slices = queries.shape[1] // DEEP
    means = list_means(stretches, head, slices)
    if len(stretches):  # while others are looked at
        prefetch_behind(means[0, 0], each // LANES * slices * SLICE_BYTES)
    for query in range(len(queries)):
        mine, whole, covered = slice(query, query + 1), 0, plain
        while whole < len(stretches) and covered + LANES * stretches[whole, TILES] <= ends[query]:
            covered += LANES * stretches[whole, TILES]
            whole += 1
        asked = numbers[mine], starts[mine], sizes[mine]
        best[:], blocks[query] = NOTHING, NONE
        look_one_by_one(
            queries[query], table, head, sinks, ends[query], plain, covered, *asked, products, best, blocks[query]
        )
        if whole:
            found = likeliest(queries[query], stretches[:whole], means, head, *asked, products, len(best), opened)
            open_tiles(stretches, head, sinks, *asked, products, opened[:found], best, blocks[query])
        in_order(best, blocks[query], len(best))


@compiled
def look_one_by_one(
    query: Floats, table: Integers, head: int, sinks: int, end: int, plain: int, covered: int, numbers: Small,
    starts: Starts, sizes: Floats, products: Floats, best: Floats, blocks: Integers,
) -> None:  # fmt: skip
    """Offer one query the blocks before `plain`, and those from `covered` on, which no whole stretch holds.

    Args:
        numbers, starts, sizes: the query, as `round_queries` makes it
        products: room
        best, blocks: a heap of the best products so far (K,), and whose they are
    """
    first, common = 0, np.float32(0.0)
    if end > plain:
        common = at_centre(query, table, head)
    for segment in range(len(table)):
        row, inside = table[segment], 0
        if row[CENTRE]:
            inside = max(0, covered - first)
        left = min(row[COUNT], end - first) - inside
        if left > 0:
            multiply_segment(row, head, inside, numbers, starts, sizes, products, 0, left)
            if not row[CENTRE]:
                products[0, :left] -= common
            for tile in range(steps_of(left)):
                begin = first + inside + LANES * tile
                offer_row(best, blocks, address(products) + 4 * LANES * tile, begin, sinks, end)
        first += row[COUNT]


@compiled
def go_on(lying: Integers, count: int) -> None:
    """Let a list of so many tiles go on with its last one, as `listed` asks for what comes."""
    for place in range(count, len(lying)):
        lying[place, 0], lying[place, 1] = lying[count - 1, 0], lying[count - 1, 1]


@compiled
def list_means(stretches: Integers, head: int, slices: int) -> Integers:
    """Where the means of all tiles lie, of so many slices each, as `listed` takes it."""
    each = stretches[0, TILES] // LANES if len(stretches) else 0
    lying, done = np.empty((len(stretches) * each + SOON, LISTED), np.int64), 0
    for place in range(len(stretches)):
        for tile in range(head * each, (head + 1) * each):
            lying[done, 0] = stretches[place, MEANS] + tile * slices * SLICE_BYTES
            lying[done, 1] = stretches[place, MEAN_SCALES] + SCALE_BYTES * LANES * tile
            done += 1
    if done:
        go_on(lying, done)
    return lying


@compiled
def likeliest(
    query: Floats, stretches: Integers, means: Integers, head: int, numbers: Small, starts: Starts, sizes: Floats,
    products: Floats, chosen: int, opened: Integers,
) -> int:  # fmt: skip
    """Which tiles of whole stretches one query opens to choose so many, filled in, in rising order; how many.

    Args:
        means: by `list_means`, of these stretches and any behind them
    """
    tiles, length = stretches[0, TILES], np.sqrt(dot(address(query), address(query), len(query) // LANES))
    slices, each = numbers.shape[1] // DEEP, tiles // LANES
    for place in range(len(stretches)):
        prefetch_behind(stretches[place, REACHES] + 4 * head * tiles, 4 * tiles)
    asked = address(numbers), address(starts), address(sizes)
    listed(address(means), len(stretches) * each, slices, *asked, address(products))
    for place in range(len(stretches)):
        to = address(products) + 4 * place * tiles
        add_times(to, stretches[place, REACHES] + 4 * head * tiles, length, each)
    count = len(stretches) * tiles
    total = lift(address(products), count // LANES)
    return best_of(products[0], count, tiles_opened(count, chosen), total, opened)


@compiled
def open_tiles(
    stretches: Integers, head: int, sinks: int, numbers: Small, starts: Starts, sizes: Floats, products: Floats,
    opened: Integers, best: Floats, blocks: Integers,
) -> None:  # fmt: skip
    """Offer one query the blocks of these tiles, in rising order; other arguments as `look_one_by_one`."""
    tiles, slices, count = stretches[0, TILES], numbers.shape[1] // DEEP, len(opened)
    lying, whose = np.empty((count + SOON, LISTED), np.int64), np.empty(count, np.int64)
    stretch, start = 0, 0
    for place in range(count):
        while opened[place] >= start + tiles:
            stretch, start = stretch + 1, start + tiles
        row, at_tile = stretches[stretch], head * tiles + opened[place] - start
        lying[place, 0] = row[ROWS] + at_tile * slices * SLICE_BYTES
        lying[place, 1] = row[ROW_SCALES] + SCALE_BYTES * LANES * at_tile
        whose[place] = row[NUMBERS] + 4 * LANES * at_tile
        if place < SOON:
            prefetch_behind(lying[place, 0], slices * SLICE_BYTES)
            prefetch_behind(lying[place, 1], SCALE_BYTES * LANES)
    go_on(lying, count)
    asked = address(numbers), address(starts), address(sizes)
    for first in range(0, count, PIECE):
        few = min(PIECE, count - first)
        listed(address(lying) + 8 * LISTED * first, few, slices, *asked, address(products))
        products[0, LANES * few : LANES * few + CHUNK] = np.float32(NOTHING)
        offer_opened(best, blocks, address(products), first, few, whose, sinks)
    for place in range(len(blocks)):
        if blocks[place] <= LATER:
            tile, lane = divmod(LATER - blocks[place], LANES)
            blocks[place] = block_at(whose[tile] + 4 * lane)
