"""CPU kernels for rows that lie as two halves (`cache.planes`): products with all bits, or with the upper ones alone.

As `cache.four_bit_kernels`, whose letters and rounding of queries these share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from cache.compiling import compiled
from cache.four_bit_kernels import AHEAD, SLICE_BYTES, TOGETHER, VNNI, round_queries
from cache.lane_kernels import (
    F32,
    I32,
    I64,
    LANES,
    REALS,
    WHOLES,
    add_bytes,
    address,
    ask,
    load,
    same,
    spread,
    store,
)
from cache.planes import DOUBT, FIELDS, MIDDLE

Floats = NDArray[np.float32]
Words = NDArray[np.uint8]
Small = NDArray[np.int8]
Starts = NDArray[np.int32]
DEEP = 16
"""Numbers of a lane in a slice."""
UPPER, LOWER = 0x0C0C0C0C, 0x03030303
"""Where the halves of a number are in its byte."""


def shifted(builder: Any, words: Any, bits: int) -> Any:
    """Up by so many bits, or down."""
    if bits == 0:
        return words
    return builder.shl(words, same(WHOLES, bits)) if bits > 0 else builder.lshr(words, same(WHOLES, -bits))


def rows_kernel(vectors: int, *, closely: bool, vnni: bool = VNNI) -> Any:
    """Of each of so many vectors of 8-bit numbers, its product with the 16 rows of a tile.

    The result takes addresses, and strides in bytes: the tile's first slice of upper halves, that of lower ones, how
    many there are; the first vector, the stride to the next one; for each vector -8 times its sum, and a scale; a scale
    for each row; where the 16 results of the first vector go, and the stride to the next one's.

    Args:
        closely: lower halves are read
    """
    middle = 1.0 if closely else MIDDLE / 8
    ways = 2 if 2 * vectors <= TOGETHER else 1  # few vectors would have to wait for the product before

    @intrinsic  # type: ignore[untyped-decorator]
    def rows(
        context: Any, upper: Any, lower: Any, count: Any, vector: Any, apart: Any, starts: Any, sizes: Any,
        scales: Any, to: Any, to_apart: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            upper, lower, count, vector, apart, starts, sizes, scales, to, to_apart = arguments
            each = [b.add(vector, b.mul(apart, I64(i))) for i in range(vectors)]
            sums = [[cgutils.alloca_once(b, WHOLES) for _ in range(ways)] for _ in range(vectors)]
            for place in (place for mine in sums for place in mine):
                b.store(same(WHOLES, 0), place)
            with cgutils.for_range(b, count) as loop:
                at = b.mul(loop.index, I64(SLICE_BYTES))
                high = load(b, b.add(upper, at), WHOLES, 1)
                ask(b, b.add(b.add(upper, at), I64(SLICE_BYTES * AHEAD)), nearest=False)
                if closely:
                    low = load(b, b.add(lower, at), WHOLES, 1)
                    ask(b, b.add(b.add(lower, at), I64(SLICE_BYTES * AHEAD)), nearest=False)
                for field in range(FIELDS):
                    numbers = b.and_(shifted(b, high, 2 - 2 * field), same(WHOLES, UPPER))
                    if closely:
                        numbers = b.or_(numbers, b.and_(shifted(b, low, -2 * field), same(WHOLES, LOWER)))
                    for mine, one in zip(sums, each, strict=True):
                        place = b.add(one, b.add(b.mul(loop.index, I64(DEEP)), I64(4 * field)))
                        four = spread(b, load(b, place, I32, 1), WHOLES)
                        total = mine[field % ways]
                        b.store(add_bytes(b, b.load(total), numbers, four, vnni=vnni), total)
            per_row = load(b, scales, REALS)
            for i, mine in enumerate(sums):
                whole = b.load(mine[0]) if ways == 1 else b.add(b.load(mine[0]), b.load(mine[1]))
                start = b.fmul(b.sitofp(load(b, b.add(starts, I64(4 * i)), I32), F32), F32(middle))
                total = b.fadd(b.sitofp(whole, REALS), spread(b, start, REALS))  # exact: halves of small numbers
                factor = b.fmul(per_row, spread(b, load(b, b.add(sizes, I64(4 * i)), F32), REALS))
                store(b, b.fmul(total, factor), b.add(to, b.mul(to_apart, I64(i))))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10), generate

    return rows


near_one, near_two, near_four, near_eight = (rows_kernel(vectors, closely=True) for vectors in (1, 2, 4, 8))
far_one, far_two, far_four, far_eight = (rows_kernel(vectors, closely=False) for vectors in (1, 2, 4, 8))


@compiled
def multiply_planes(
    numbers: Small, starts: Starts, sizes: Floats, upper: int, lower: int, scales: int, products: Floats, start: int,
    count: int, closely: bool,
) -> None:  # fmt: skip
    """Products of a head's queries with its first rows, with all bits or at a glance.

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
        offset, per_row = tile * slices * SLICE_BYTES, scales + 4 * tile * LANES
        high, low, query = upper + offset, lower + offset, 0
        while query < queries:
            left, place = queries - query, 4 * query
            vector, begin, size = address(numbers) + query * apart, address(starts) + place, address(sizes) + place
            to = results + query * row_apart + 4 * tile * LANES
            if closely:
                if left >= 8:
                    near_eight(high, low, slices, vector, apart, begin, size, per_row, to, row_apart)
                elif left >= 4:
                    near_four(high, low, slices, vector, apart, begin, size, per_row, to, row_apart)
                elif left >= 2:
                    near_two(high, low, slices, vector, apart, begin, size, per_row, to, row_apart)
                else:
                    near_one(high, low, slices, vector, apart, begin, size, per_row, to, row_apart)
            elif left >= 8:
                far_eight(high, low, slices, vector, apart, begin, size, per_row, to, row_apart)
            elif left >= 4:
                far_four(high, low, slices, vector, apart, begin, size, per_row, to, row_apart)
            elif left >= 2:
                far_two(high, low, slices, vector, apart, begin, size, per_row, to, row_apart)
            else:
                far_one(high, low, slices, vector, apart, begin, size, per_row, to, row_apart)
            query += 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1


@compiled
def doubts_of(numbers: Small, sizes: Floats, doubts: Floats) -> None:
    """How far off a glance at a row whose scale is 1 may well be, for each query (Q,)."""
    for query in range(len(numbers)):
        total = 0
        for d in range(numbers.shape[1]):
            total += np.int64(numbers[query, d]) * np.int64(numbers[query, d])
        doubts[query] = np.float32(DOUBT) * np.sqrt(np.float32(total)) * sizes[query]


@compiled
def multiply(
    queries: Floats, upper: Words, lower: Words, scales: Floats, products: Floats, start: int, count: int, first: int,
    last: int,
) -> None:  # fmt: skip
    """`multiply_planes` with all bits, of heads first, …, last - 1: queries (H, Q, D), all with heads in front."""
    amount, width = queries.shape[1], upper.shape[2] * DEEP
    numbers, starts = np.empty((amount, width), np.int8), np.empty(amount, np.int32)
    sizes, room = np.empty(amount, np.float32), np.empty((amount, (count + LANES - 1) // LANES * LANES), np.float32)
    for head in range(first, last):
        round_queries(queries[head], numbers, starts, sizes)
        where = address(upper[head]), address(lower[head]), address(scales[head])
        multiply_planes(numbers, starts, sizes, *where, room, 0, count, True)
        products[head, :, start : start + count] = room[:, :count]


@compiled
def glance(queries: Floats, upper: Words, scales: Floats, likely: Floats, doubt: Floats, count: int) -> None:
    """What `Planes.glances` gives: likely and doubt (H, Q, count)."""
    amount, width = queries.shape[1], upper.shape[2] * DEEP
    numbers, starts = np.empty((amount, width), np.int8), np.empty(amount, np.int32)
    sizes, room = np.empty(amount, np.float32), np.empty((amount, (count + LANES - 1) // LANES * LANES), np.float32)
    doubts = np.empty(amount, np.float32)
    for head in range(len(queries)):
        round_queries(queries[head], numbers, starts, sizes)
        where = address(upper[head]), 0, address(scales[head])
        multiply_planes(numbers, starts, sizes, *where, room, 0, count, False)
        likely[head] = room[:, :count]
        doubts_of(numbers, sizes, doubts)
        for query in range(amount):
            for n in range(count):
                doubt[head, query, n] = doubts[query] * scales[head, n]
