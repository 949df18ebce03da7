"""CPU kernels for rows in 4 bits, compiled by Numba when they are first called.

Each works on ranges of heads without the GIL, so that several run at once. Arrays are C-contiguous; how the numbers lie
tells `cache.four_bits`. Queries and weights are rounded to 8 bits, so that a sum of products is an exact integer, and
one instruction makes 64 products where there is AVX-512 VNNI, 32 with AVX2 (`cache.product_kernels`). The inner loops
are written for LLVM itself, because Numba makes 64-bit numbers of every sum of integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from cache.compiling import compiled
from cache.four_bits import BYTES, DEEP, LANES
from cache.lane_kernels import (
    CHUNK,
    F32,
    FINEST,
    I32,
    I64,
    MIDDLE,
    REALS,
    TINIEST,
    WHOLES,
    address,
    as_real,
    as_whole,
    ask,
    at,
    knows,
    load,
    plus_product,
    same,
    shorten,
    spread,
    store,
)
from cache.product_kernels import KNOWN, REGISTERS, Sums, Way

SLICE_BYTES = LANES * BYTES
TOGETHER = 8
"""Queries that are looked at together."""
WIDEST = TOGETHER if KNOWN[0].width == SLICE_BYTES else TOGETHER // 2
"""Those that share the work of unpacking rows: so many sums stay in registers, of which AVX2 has half as many."""
NEAR = 16
"""Tiles that all queries look at before the next ones."""
MOST_BESIDE = 4
"""Slices whose sums are added up at once, at most."""
AT_ONCE = knows("avx512f")
"""Whether two operations on bits are one instruction."""
AHEAD = 128
"""Slices: so far before it is needed a slice is asked for, into the cache behind the nearest one, which bears more such
wishes at once."""
HALVES = DEEP // BYTES
"""Of a slice: each has a number of all its bytes."""
LARGEST = 2 * MIDDLE - 1
"""What a number of 4 bits can be without a sign."""
Floats = NDArray[np.float32]
Words = NDArray[np.uint8]
Small = NDArray[np.int8]
Starts = NDArray[np.int32]


def spread_at(builder: Any, place: Any) -> Any:
    """The 32-bit number at an address, in all lanes."""
    return spread(builder, load(builder, place, I32, 1), WHOLES)


def both_halves(builder: Any, words: Any) -> Iterator[Any]:
    """Of each byte the number in its lower four bits, and that in its upper ones: -8 … 7 become 0 … 15."""
    b, lower, signs = builder, same(WHOLES, 0x0F0F0F0F), 0x01010101 * MIDDLE
    if not AT_ONCE:
        words, signs = b.xor(words, same(WHOLES, signs | signs << 4)), 0
    for half in (0, 1):
        low = b.and_(b.lshr(words, same(WHOLES, 4)) if half else words, lower)
        yield b.xor(low, same(WHOLES, signs)) if AT_ONCE else low


def add_slices(builder: Any, sums: Sums, slices: list[Any], vectors: list[Any]) -> None:
    """To the sums of each slice, one for each of these vectors, both its halves times 8 numbers from an address on."""
    b, words = builder, [load(builder, slice, WHOLES, 1) for slice in slices]
    for half, numbers in enumerate(zip(*(both_halves(b, word) for word in words), strict=True)):
        for i, vector in enumerate(vectors):
            factors = spread_at(b, b.add(vector, I64(BYTES * half)))
            for place, mine in enumerate(numbers):
                sums.add(place * len(vectors) + i, half, mine, factors)


def beside(vectors: int, way: Way) -> int:
    """How many slices' sums are added up at once: a product waits for some others of its own sum, and what is asked
    is read once for all of them."""
    return max(1, min(MOST_BESIDE, REGISTERS // vectors)) if way.whole else 1


def in_bundles(builder: Any, count: Any, most: int, work: Callable[[Any, int], None]) -> None:
    """Work from each of so many numbers on, `most` at once, and what is left one by one."""
    b = builder
    bundles = b.sdiv(count, I64(most))
    with cgutils.for_range(b, bundles) as loop:
        work(b.mul(loop.index, I64(most)), most)
    if most > 1:
        with cgutils.for_range(b, count, b.mul(bundles, I64(most))) as loop:
            work(loop.index, 1)


def tile_products(
    builder: Any, way: Way, tiles: list[Any], count: Any, vectors: list[Any], starts: list[Any],
    soon: Callable[[Any], None],
) -> list[Any]:  # fmt: skip
    """Products of vectors of 8-bit numbers with the 16 rows of some tiles, of each tile with all vectors, in steps.

    Args:
        tiles: where the first slice of each lies, of `count` ones
        starts: what the vectors' sums begin with
        soon: asks in each step, whose number it is given, for what is needed later
    """
    b, sums = builder, Sums(builder, len(tiles) * len(vectors), LARGEST, way, HALVES)
    sums.begin(starts * len(tiles))
    with sums.steps(count, HALVES) as step:
        further = b.mul(step, I64(SLICE_BYTES))
        soon(step)
        mine = [b.add(one, b.mul(step, I64(DEEP))) for one in vectors]
        add_slices(b, sums, [b.add(tile, further) for tile in tiles], mine)
    return sums.in_reals()


def multiply_tiles(
    builder: Any, way: Way, tiles: list[Any], count: Any, vectors: list[Any], starts: Any, sizes: Any,
    scales: list[Any], to: Callable[[int, int], Any], soon: Callable[[Any], None],
) -> None:  # fmt: skip
    """`tile_products`, to where they belong.

    Args:
        starts, sizes: addresses of what the vectors' sums begin with, and of their scales
        scales: where those of each tile's rows lie
        to: tells where products of a tile go with a vector, by their places
    """
    b = builder
    begun = [spread_at(b, b.add(starts, I64(4 * i))) for i in range(len(vectors))]
    totals = iter(tile_products(b, way, tiles, count, vectors, begun, soon))
    for place, of_tile in enumerate(scales):
        per_row = load(b, of_tile, REALS)
        for i in range(len(vectors)):
            factor = b.fmul(per_row, spread(b, load(b, b.add(sizes, I64(4 * i)), F32), REALS))
            store(b, b.fmul(next(totals), factor), to(place, i))


def rows_kernel(vectors: int, *, way: Way = KNOWN[0]) -> Any:
    """Of each of so many vectors of 8-bit numbers, its products with rows, 16 of them in a tile.

    The result takes addresses, and strides in bytes: the first tile's first slice, how many tiles there are, and slices
    of each; the first vector, the stride to the next one; for each vector what its sums begin with, and a scale; a
    scale for each row; where the results of the first vector go, and the stride to the next one's.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def rows(
        context: Any, words: Any, tiles: Any, count: Any, vector: Any, apart: Any, starts: Any, sizes: Any, scales: Any,
        to: Any, to_apart: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            words, tiles, count, vector, apart, starts, sizes, scales, to, to_apart = arguments
            each, stride = [b.add(vector, b.mul(apart, I64(i))) for i in range(vectors)], b.mul(count, I64(SLICE_BYTES))

            def multiply(tile: Any, few: int) -> None:
                places = [b.add(tile, I64(i)) for i in range(few)]
                lying = [b.add(words, b.mul(place, stride)) for place in places]

                def soon(step: Any) -> None:
                    further = b.add(b.mul(step, I64(SLICE_BYTES)), I64(SLICE_BYTES * AHEAD))
                    for tile in lying:
                        ask(b, b.add(tile, further), nearest=False)

                def goes(place: int, i: int) -> Any:
                    return at(b, b.add(to, b.mul(to_apart, I64(i))), places[place])

                per_row = [at(b, scales, place) for place in places]
                multiply_tiles(b, way, lying, count, each, starts, sizes, per_row, goes, soon)

            in_bundles(b, tiles, beside(vectors, way), multiply)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10), generate

    return rows


def channels_kernel(vectors: int, *, way: Way = KNOWN[0]) -> Any:
    """To sums of channels, for each of so many vectors of 8-bit weights, rows times their weights.

    Rows are taken as they lie: some of them for all channels, then the next ones.

    The result takes addresses, and strides in bytes: the first slice, the groups of 16 channels, the slices of each,
    and how many of them are weighed with one scale; the first vector, for each such chunk of it what a sum begins with
    and a scale, the stride from a vector to the next one in all three; the first vector's sums, and the stride to the
    next one's.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def channels(
        context: Any, slices: Any, groups: Any, count: Any, chunk: Any, vector: Any, starts: Any, sizes: Any,
        apart: Any, to: Any, to_apart: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            slices, groups, count, chunk, vector, starts, sizes, apart, to, to_apart = arguments
            offsets = [b.mul(apart, I64(i)) for i in range(vectors)]
            first_sums = [b.add(to, b.mul(to_apart, I64(i))) for i in range(vectors)]
            stride = b.mul(groups, I64(SLICE_BYTES))
            chunks = b.sdiv(b.add(count, b.sub(chunk, I64(1))), chunk)
            with cgutils.for_range(b, chunks) as loop:
                first, place = b.mul(loop.index, chunk), b.mul(loop.index, I64(4))
                left = b.sub(count, first)
                taken = b.select(b.icmp_signed("<", left, chunk), left, chunk)
                begun = [load(b, b.add(b.add(starts, place), offset), I32) for offset in offsets]
                scales = [spread(b, load(b, b.add(b.add(sizes, place), offset), F32), REALS) for offset in offsets]

                def add_up(group: Any, few: int) -> None:
                    sums = Sums(b, few * vectors, LARGEST, way, HALVES)
                    of_groups = [b.mul(b.add(group, I64(i)), I64(SLICE_BYTES)) for i in range(few)]
                    sums.begin([spread(b, start, WHOLES) for start in begun] * few)
                    with sums.steps(taken, HALVES) as step:
                        octet = b.add(first, step)
                        row, mine = b.add(slices, b.mul(octet, stride)), b.add(vector, b.mul(octet, I64(DEEP)))
                        lying = [b.add(row, of_group) for of_group in of_groups]
                        for slice in lying:
                            ask(b, b.add(slice, b.mul(stride, chunk)), nearest=False)
                        add_slices(b, sums, lying, [b.add(mine, offset) for offset in offsets])
                    totals = iter(sums.in_reals())
                    for of_group in of_groups:
                        for each, size in zip(first_sums, scales, strict=True):
                            total = b.add(each, of_group)
                            store(b, plus_product(b, load(b, total, REALS), next(totals), size), total)

                in_bundles(b, groups, beside(vectors, way), add_up)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10), generate

    return channels


rows_one, rows_two, rows_four, rows_most = (rows_kernel(vectors) for vectors in (1, 2, 4, WIDEST))
channels_one, channels_two, channels_four, channels_most = (channels_kernel(vectors) for vectors in (1, 2, 4, WIDEST))


@compiled
def round_queries(queries: Floats, numbers: Small, starts: Starts, sizes: Floats) -> None:
    """Queries (Q, D) as 8-bit numbers (Q, D or more), what sums of their products begin with, and their scales (Q,)."""
    for query in range(len(queries)):
        row, highest, total = queries[query], as_whole(np.float32(TINIEST)), np.int32(0)
        for d in range(len(row)):  # as bits, of which one may be the highest in any order
            highest = max(highest, as_whole(abs(row[d])))
        largest = as_real(np.int32(highest))
        factor = np.float32(FINEST) / largest
        numbers[query] = 0
        for d in range(len(row)):
            number = np.int32(np.rint(row[d] * factor))
            numbers[query, d] = np.int8(number)
            total += number
        starts[query] = -MIDDLE * total
        sizes[query] = largest / np.float32(FINEST)


@compiled
def multiply_rows(
    numbers: Small, starts: Starts, sizes: Floats, words: int, scales: int, products: Floats, start: int, count: int
) -> None:
    """Products of a head's queries with its first rows.

    Args:
        numbers, starts, sizes: (Q, padded D), (Q,) and (Q,), as `round_queries` makes them
        words, scales: addresses of (tiles, slices, 16, 4) and (rows,)
        products: (Q, N), filled from column `start` on; what lies behind the rows is written over up to 16 columns on,
            which must be there
    """
    queries, slices = numbers.shape[0], numbers.shape[1] // DEEP
    apart, row_apart, tiles = numbers.shape[1], 4 * products.shape[1], (count + LANES - 1) // LANES
    results = address(products) + 4 * start
    for tile in range(0, tiles, NEAR):
        first, per_row, few = words + tile * slices * SLICE_BYTES, scales + 4 * tile * LANES, min(NEAR, tiles - tile)
        query = 0
        while query < queries:
            left, place = queries - query, 4 * query
            vector, start_at, size_at = (
                address(numbers) + query * apart,
                address(starts) + place,
                address(sizes) + place,
            )
            to = results + query * row_apart + 4 * tile * LANES
            if left >= WIDEST:
                rows_most(first, few, slices, vector, apart, start_at, size_at, per_row, to, row_apart)
                query += WIDEST
            elif left >= 4:
                rows_four(first, few, slices, vector, apart, start_at, size_at, per_row, to, row_apart)
                query += 4
            elif left >= 2:
                rows_two(first, few, slices, vector, apart, start_at, size_at, per_row, to, row_apart)
                query += 2
            else:
                rows_one(first, few, slices, vector, apart, start_at, size_at, per_row, to, row_apart)
                query += 1


@compiled
def add_up_rows(
    numbers: int, starts: int, sizes: int, apart: int, first: int, words: int, sums: Floats, count: int, share: int
) -> None:
    """Add a head's rows, times weights, to sums.

    Args:
        numbers: address of weights times the rows' scales, in 8 bits (Q, N)
        starts, sizes: addresses of what belongs to each chunk of them (Q, chunks), as a `shortener` makes it
        apart: bytes from a query's weights to the next one's, and from their starts and sizes
        first: the first row's column, a multiple of `share`
        words: address of (octets, groups, 16, 4)
        sums: (Q, padded D)
        share: rows that share a scale of their weights, a multiple of 16
    """
    queries, groups = sums.shape[0], sums.shape[1] // LANES
    to_apart, octets = 4 * sums.shape[1], (count + DEEP - 1) // DEEP
    chunk, together = 4 * (first // share), share // DEEP
    query = 0
    while query < queries:
        left, offset = queries - query, query * apart
        vector, start_at, size_at = numbers + first + offset, starts + chunk + offset, sizes + chunk + offset
        to = address(sums) + query * to_apart
        if left >= WIDEST:
            channels_most(words, groups, octets, together, vector, start_at, size_at, apart, to, to_apart)
        elif left >= 4:
            channels_four(words, groups, octets, together, vector, start_at, size_at, apart, to, to_apart)
        elif left >= 2:
            channels_two(words, groups, octets, together, vector, start_at, size_at, apart, to, to_apart)
        else:
            channels_one(words, groups, octets, together, vector, start_at, size_at, apart, to, to_apart)
        query += WIDEST if left >= WIDEST else 4 if left >= 4 else 2 if left >= 2 else 1


@compiled
def chunks_of(count: int) -> int:
    return (count + CHUNK - 1) // CHUNK


@compiled
def multiply(
    queries: Floats, words: Words, scales: Floats, products: Floats, start: int, count: int, first: int, last: int
) -> None:
    """`multiply_rows` of heads first, …, last - 1: queries (H, Q, D), all else with heads in front, too."""
    amount, width = queries.shape[1], (queries.shape[2] + DEEP - 1) // DEEP * DEEP
    numbers, starts, sizes = (
        np.empty((amount, width), np.int8),
        np.empty(amount, np.int32),
        np.empty(amount, np.float32),
    )
    room = np.empty((amount, (count + LANES - 1) // LANES * LANES), np.float32)
    for head in range(first, last):
        round_queries(queries[head], numbers, starts, sizes)
        multiply_rows(numbers, starts, sizes, address(words[head]), address(scales[head]), room, 0, count)
        products[head, :, start : start + count] = room[:, :count]


@compiled
def add_up(
    weights: Floats, words: Words, scales: Floats, sums: Floats, start: int, count: int, first: int, last: int
) -> None:
    """`add_up_rows` of heads first, …, last - 1: everything with heads in front."""
    queries, chunks = weights.shape[1], chunks_of(count)
    room, per_row = np.zeros(chunks * CHUNK, np.float32), np.zeros(chunks * CHUNK, np.float32)
    numbers = np.empty((queries, chunks * CHUNK), np.int8)
    starts, sizes = (
        np.empty((queries, chunks * CHUNK // 4), np.int32),
        np.empty((queries, chunks * CHUNK // 4), np.float32),
    )
    whole = np.empty((queries, words.shape[2] * LANES), np.float32)
    for head in range(first, last):
        per_row[:count] = scales[head, :count]
        for query in range(queries):
            room[:count] = weights[head, query, start : start + count]
            shorten(
                address(room), address(per_row), address(numbers[query]), address(starts[query]),
                address(sizes[query]), chunks,
            )  # fmt: skip
        whole[:] = 0.0
        of_all = address(numbers), address(starts), address(sizes)
        add_up_rows(*of_all, chunks * CHUNK, 0, address(words[head]), whole, count, CHUNK)
        sums[head] += whole[:, : sums.shape[2]]


def warm_up() -> None:
    """Compile now, or load what an earlier start compiled, rather than in somebody's first request."""
    words, ones = np.zeros((1, 2, 2, LANES, BYTES), np.uint8), np.ones((1, LANES), np.float32)
    row = np.ones((1, 1, LANES), np.float32)
    multiply(row, words, ones, np.empty_like(row), 0, 1, 0, 1)
    add_up(row, words, ones, np.zeros_like(row), 0, LANES, 0, 1)
