"""CPU kernels for rows that lie as two halves (`cache.planes`): products with all bits, or with the upper ones alone.

As `cache.four_bit_kernels`, whose letters and rounding of queries these share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from cache.compiling import compiled
from cache.four_bit_kernels import AHEAD, LARGEST, SLICE_BYTES, WIDEST, add_part, round_queries, spread_at
from cache.lane_kernels import (
    F32,
    I16,
    I64,
    LANES,
    NOTHING,
    REALS,
    WHOLES,
    address,
    ask,
    load,
    plus_product,
    same,
    spread,
    store,
)
from cache.planes import DOUBT, FIELDS, MIDDLE
from cache.product_kernels import KNOWN, Sums, Way

Floats = NDArray[np.float32]
Words = NDArray[np.uint8]
Small = NDArray[np.int8]
Halves = NDArray[np.uint16]
Starts = NDArray[np.int32]
HALVES = ir.VectorType(I16, LANES)
SCALE_BYTES = 2
DEEP = 16
"""Numbers of a lane in a slice."""
UPPER = 3
"""The largest number of an upper half."""
TWICE_MIDDLE = int(2 * MIDDLE)


def near_kernel(vectors: int, *, way: Way = KNOWN[0]) -> Any:
    """Of each of so many vectors of 8-bit numbers, its product with the 16 rows of a tile.

    The result takes addresses, and strides in bytes: the tile's first slice of upper halves, that of lower ones, how
    many there are; the first vector, the stride to the next one; for each vector what its sum begins with, and a scale;
    a scale for each row; where the 16 results of the first vector go, and the stride to the next one's.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def near(
        context: Any, upper: Any, lower: Any, count: Any, vector: Any, apart: Any, starts: Any, sizes: Any,
        scales: Any, to: Any, to_apart: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            upper, lower, count, vector, apart, starts, sizes, scales, to, to_apart = arguments
            each = [b.add(vector, b.mul(apart, I64(i))) for i in range(vectors)]
            sums = Sums(b, vectors, LARGEST, way, FIELDS // 2)
            sums.begin(spread_at(b, b.add(starts, I64(4 * i))) for i in range(vectors))
            with sums.steps(count, FIELDS) as step:
                at = b.mul(step, I64(SLICE_BYTES))
                high, low = (load(b, b.add(half, at), WHOLES, 1) for half in (upper, lower))
                for half in (upper, lower):
                    ask(b, b.add(b.add(half, at), I64(SLICE_BYTES * AHEAD)), nearest=False)
                for field in range(FIELDS):
                    numbers = b.or_(shifted(b, high, 2 - 2 * field, 3 << 2), shifted(b, low, -2 * field, 3))
                    add_part(b, sums, field, numbers, [fours_at(b, one, step, field) for one in each])
            per_row = load_scales(b, scales)
            for i, total in enumerate(sums.in_reals()):
                factor = b.fmul(per_row, spread(b, load(b, b.add(sizes, I64(4 * i)), F32), REALS))
                store(b, b.fmul(total, factor), b.add(to, b.mul(to_apart, I64(i))))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10), generate

    return near


def load_scales(builder: Any, place: Any) -> Any:
    """16 of them in fp32."""
    wide = builder.zext(load(builder, place, HALVES, 2), WHOLES)
    return builder.bitcast(builder.shl(wide, same(WHOLES, 16)), REALS)


def shifted(builder: Any, words: Any, bits: int, mask: int) -> Any:
    """Up by so many bits, or down, and of each byte what a mask leaves."""
    if bits:
        words = builder.shl(words, same(WHOLES, bits)) if bits > 0 else builder.lshr(words, same(WHOLES, -bits))
    return builder.and_(words, same(WHOLES, 0x01010101 * mask))


def fours_at(builder: Any, vector: Any, slice: Any, field: int) -> Any:
    """The address of a vector's four numbers that belong to a field of a slice."""
    return builder.add(vector, builder.add(builder.mul(slice, I64(DEEP)), I64(4 * field)))


def glance_kernel(*, way: Way = KNOWN[0]) -> Any:
    """A vector's products at a glance with two tiles after the other two, until one may well reach a bar.

    Fields of a byte are masked where they are, or those of its upper half where the lower ones are, if sums or
    registers have no room for more: the fields of each place have a sum, which is a multiple of what the place is
    worth. The result takes addresses: the first tile's first slice of upper halves, how many a tile has; the vector,
    what its sum begins with, its scale, how far off it may well be where a row's scale is 1; a scale for each row; the
    bar; where the 32 results go; the first pair of tiles, and the one behind the last. It returns the pair whose
    results are there, or the last one where none reaches the bar.
    """
    apart = FIELDS // 2 if way.widen or way.width < SLICE_BYTES else FIELDS

    @intrinsic  # type: ignore[untyped-decorator]
    def glance(
        context: Any, upper: Any, count: Any, vector: Any, start: Any, size: Any, doubt: Any, scales: Any, bar: Any,
        to: Any, first: Any, last: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            upper, count, vector, start, size, doubt, scales, bar, to, first, last = arguments
            start, (size, doubt, bar) = spread(b, start, WHOLES), (spread(b, x, REALS) for x in (size, doubt, bar))
            sums = Sums(b, 2 * apart, UPPER << 2 * (apart - 1), way)
            found = cgutils.alloca_once_value(b, last)
            b.store(last, found)
            length = b.mul(count, I64(SLICE_BYTES))
            with cgutils.for_range(b, last, start=first) as pairs:
                pair = pairs.index
                sums.begin([same(WHOLES, 0)] * 2 * apart)
                tiles = b.add(upper, b.mul(b.mul(pair, I64(2)), length))
                with sums.steps(count, FIELDS // apart) as step:
                    at = b.add(tiles, b.mul(step, I64(SLICE_BYTES)))
                    both = at, b.add(at, length)
                    words = [load(b, one, WHOLES, 1) for one in both]
                    for one in both:
                        ask(b, b.add(one, I64(SLICE_BYTES * AHEAD)), nearest=False)
                    for field in range(FIELDS):
                        four, (part, place) = spread_at(b, fours_at(b, vector, step, field)), divmod(field, apart)
                        for tile, high in enumerate(words):
                            numbers = shifted(b, high, -2 * apart * part, UPPER << 2 * place)
                            sums.add(tile * apart + place, 0, numbers, four)
                reached, ended = [], sums.end()
                for tile in range(2):
                    row = b.add(b.mul(pair, I64(2 * LANES)), I64(LANES * tile))
                    per_row = load_scales(b, b.add(scales, b.mul(row, I64(2))))
                    mine = enumerate(ended[tile * apart : (tile + 1) * apart])
                    parts = [b.ashr(one, same(WHOLES, 2 * place)) for place, one in mine]
                    while len(parts) > 1:
                        parts = [b.add(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
                    total = b.sitofp(b.add(b.shl(parts[0], same(WHOLES, 3)), start), REALS)
                    product = b.fmul(total, b.fmul(per_row, size))
                    store(b, product, b.add(to, I64(4 * LANES * tile)))
                    reached.append(b.fcmp_ordered(">=", plus_product(b, product, per_row, doubt), bar))
                there = b.icmp_unsigned("!=", b.bitcast(b.or_(*reached), I16), I16(0))
                with b.if_then(there, likely=False):
                    b.store(pair, found)
                    pairs.do_break()
            return b.load(found)

        return types.intp(*[types.intp] * 3, types.int32, *[types.float32] * 2, types.intp, types.float32,
                          *[types.intp] * 3), generate  # fmt: skip

    return glance


near_one, near_two, near_four, near_most = (near_kernel(vectors) for vectors in (1, 2, 4, WIDEST))
glance_on = glance_kernel()


@compiled
def multiply_closely(
    numbers: Small, starts: Starts, sizes: Floats, upper: int, lower: int, scales: int, products: Floats, start: int,
    count: int,
) -> None:  # fmt: skip
    """Products of a head's queries with its first rows.

    Args:
        numbers, starts, sizes: (Q, padded D), (Q,) and (Q,), as `round_queries` makes them
        upper, lower, scales: addresses of (tiles, slices, 16, 4) each, and (rows,)
        products: (Q, N), filled from column `start` on; what lies behind the rows is written over up to 16 columns on,
            which must be there
    """
    queries, slices = numbers.shape[0], numbers.shape[1] // DEEP
    apart, row_apart = numbers.shape[1], 4 * products.shape[1]
    results = address(products) + 4 * start
    for tile in range((count + LANES - 1) // LANES):
        offset, per_row = tile * slices * SLICE_BYTES, scales + SCALE_BYTES * tile * LANES
        high, low, query = upper + offset, lower + offset, 0
        while query < queries:
            left, place = queries - query, 4 * query
            vector, begin, size = address(numbers) + query * apart, address(starts) + place, address(sizes) + place
            to = results + query * row_apart + 4 * tile * LANES
            if left >= WIDEST:
                near_most(high, low, slices, vector, apart, begin, size, per_row, to, row_apart)
                query += WIDEST
            elif left >= 4:
                near_four(high, low, slices, vector, apart, begin, size, per_row, to, row_apart)
                query += 4
            elif left >= 2:
                near_two(high, low, slices, vector, apart, begin, size, per_row, to, row_apart)
                query += 2
            else:
                near_one(high, low, slices, vector, apart, begin, size, per_row, to, row_apart)
                query += 1


@compiled
def glancing(numbers: Small, start: int, size: float) -> tuple[np.int32, np.float32, np.float32]:
    """Of a query (D,) as `round_queries` makes it: what a sum of a glance begins with, its scale, and its doubt.

    A product at a glance is 2 * (4 * upper - MIDDLE), so that it stays a whole number, times half the scale.
    """
    total = np.int64(0)
    for d in range(len(numbers)):
        total += np.int64(numbers[d]) * np.int64(numbers[d])
    half = np.float32(0.5) * np.float32(size)
    doubt = np.float32(DOUBT) * np.sqrt(np.float32(total)) * np.float32(size)
    return np.int32(start // 8 * TWICE_MIDDLE), half, doubt


@compiled
def multiply(
    queries: Floats, upper: Words, lower: Words, scales: Halves, products: Floats, start: int, count: int, first: int,
    last: int,
) -> None:  # fmt: skip
    """`multiply_closely` of heads first, …, last - 1: queries (H, Q, D), everything with heads in front."""
    amount, width = queries.shape[1], upper.shape[2] * DEEP
    numbers, starts = np.empty((amount, width), np.int8), np.empty(amount, np.int32)
    sizes, room = np.empty(amount, np.float32), np.empty((amount, (count + LANES - 1) // LANES * LANES), np.float32)
    for head in range(first, last):
        round_queries(queries[head], numbers, starts, sizes)
        where = address(upper[head]), address(lower[head]), address(scales[head])
        multiply_closely(numbers, starts, sizes, *where, room, 0, count)
        products[head, :, start : start + count] = room[:, :count]


@compiled
def glance(queries: Floats, upper: Words, scales: Halves, likely: Floats, doubt: Floats, count: int) -> None:
    """What `Planes.glances` gives: likely (H, Q, count); and doubt where scales are 1 (H, Q)."""
    amount, slices = queries.shape[1], upper.shape[2]
    numbers, starts = np.empty((amount, slices * DEEP), np.int8), np.empty(amount, np.int32)
    sizes, room = np.empty(amount, np.float32), np.empty(2 * LANES, np.float32)
    pairs = (count + 2 * LANES - 1) // (2 * LANES)
    for head in range(len(queries)):
        round_queries(queries[head], numbers, starts, sizes)
        where, per_row = address(upper[head]), address(scales[head])
        for query in range(amount):
            start, half, unsure = glancing(numbers[query], starts[query], sizes[query])
            mine = address(numbers) + query * slices * DEEP
            for pair in range(pairs):
                glance_on(
                    where, slices, mine, start, half, unsure, per_row, np.float32(NOTHING), address(room), pair,
                    pair + 1,
                )  # fmt: skip
                begin = 2 * LANES * pair
                few = min(2 * LANES, count - begin)
                likely[head, query, begin : begin + few] = room[:few]
            doubt[head, query] = unsure


def warm_up() -> None:
    """Compile now, or load what an earlier start compiled, rather than in somebody's first request."""
    words, ones = np.zeros((1, 1, 1, LANES, 4), np.uint8), np.ones((1, LANES), np.uint16)
    row = np.ones((1, 1, LANES), np.float32)
    multiply(row, words, words, ones, np.empty_like(row), 0, 1, 0, 1)
    glance(row, words, ones, np.empty_like(row), np.empty((1, 1), np.float32), 1)
