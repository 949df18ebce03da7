"""CPU kernels for rows in 4 bits, compiled by Numba when they are first called.

Each works on one head without the GIL, so that several run at once. Arrays are C-contiguous; how the words lie tells
`cache.four_bits`. The inner loop is written for LLVM itself, because Numba makes 64-bit numbers of every sum of
integers: a pair of 16-bit products added to 32 bits, which is one instruction on every x86 since 2006 (`pmaddwd`, 32
pairs at once where there is AVX-512) and two on ARM. Measured beside the same loop in plain Numba: 8 times as fast for
four queries.
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
from cache.four_bits import DEEP, LANES, NIBBLES, WORDS
from cache.lane_kernels import (
    F32,
    I16,
    I32,
    I64,
    REALS,
    WHOLES,
    address,
    ask,
    load,
    same,
    scale,
    shorten,
    spread,
    store,
)

CHUNK = 256
"""Weights that share a scale. The sum of so many products stays below 2**31."""
TOGETHER = 64
"""Queries for which rows are read again: more would not stay in the cache beside what they write."""
AHEAD = 32
"""Slices: so far before it is needed a slice is asked for."""
SLICE_BYTES = LANES * WORDS * 2
Floats = NDArray[np.float32]
Words = NDArray[np.uint16]

NUMBERS, PAIRS = ir.VectorType(I16, 2 * LANES), ir.VectorType(I32, 2 * LANES)


def add_neighbours(builder: Any, sums: Any, left: Any, right: Any) -> Any:
    """To each lane of sums, the products of its two neighbours in left and right."""
    both = builder.mul(builder.sext(left, PAIRS), builder.sext(right, PAIRS))
    nothing = ir.Constant(PAIRS, ir.Undefined)
    even, odd = (
        builder.shuffle_vector(both, nothing, ir.Constant(WHOLES, list(range(start, 2 * LANES, 2)))) for start in (0, 1)
    )
    return builder.add(sums, builder.add(even, odd))


def lanes_kernel(vectors: int, *, adds: bool) -> Any:
    """For each of so many vectors of 16-bit numbers, its product with the 16 lanes of a run of slices.

    The result takes addresses and strides in bytes: the first slice, the stride to the next one, how many there are;
    the first vector, the stride to the next one; a scale for each lane; a scale for each vector; where the 16 results
    of the first vector go, and the stride to the next one's. It writes results, or adds them to what is there.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def lanes(
        context: Any, slices: Any, stride: Any, count: Any, vector: Any, apart: Any, scales: Any, scale: Any, to: Any,
        to_apart: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            slices, stride, count, vector, apart, scales, scale, to, to_apart = arguments
            # two sums for each vector: one would have to wait for the product before
            sums = [[cgutils.alloca_once_value(b, same(WHOLES, 0)) for _ in (0, 1)] for _ in range(vectors)]
            with cgutils.for_range(b, count) as loop:
                slice = b.add(slices, b.mul(loop.index, stride))
                ask(b, b.add(slice, b.mul(stride, I64(AHEAD))))
                words = load(b, slice, NUMBERS, 1)
                for nibble in range(NIBBLES):
                    top = 4 * (NIBBLES - 1)
                    numbers = b.ashr(b.shl(words, same(NUMBERS, top - 4 * nibble)), same(NUMBERS, top))
                    offset = b.add(b.mul(loop.index, I64(2 * DEEP)), I64(2 * WORDS * nibble))
                    for i in range(vectors):
                        pair = load(b, b.add(b.add(vector, b.mul(apart, I64(i))), offset), I32, 2)
                        factors = b.bitcast(spread(b, pair, WHOLES), NUMBERS)
                        total = sums[i][nibble % 2]
                        b.store(add_neighbours(b, b.load(total), numbers, factors), total)
            per_lane = load(b, scales, REALS, 4)
            for i in range(vectors):
                factor = b.fmul(per_lane, spread(b, load(b, b.add(scale, I64(4 * i)), F32, 4), REALS))
                total = b.add(*(b.load(each) for each in sums[i]))
                result = b.fmul(b.sitofp(total, REALS), factor)
                place = b.add(to, b.mul(to_apart, I64(i)))
                if adds:
                    result = b.fadd(result, load(b, place, REALS, 4))
                store(b, result, place)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), generate

    return lanes


multiply_one, multiply_four = lanes_kernel(1, adds=False), lanes_kernel(4, adds=False)
add_one, add_four = lanes_kernel(1, adds=True), lanes_kernel(4, adds=True)


@compiled
def round_row(row: Floats, numbers: NDArray[np.int16], scale: Floats, work: Floats) -> None:
    """A row (D,) as 16-bit numbers (D or more), zeros behind them, and its scale (1,).

    The largest number is found by folding `work`, a power of two and not below D: Numba does not make vectors of a
    maximum over a loop.
    """
    for d in range(len(row)):
        work[d] = abs(row[d])
    work[len(row) :] = 0.0
    half = len(work) // 2
    while half:
        for d in range(half):
            work[d] = max(work[d], work[half + d])
        half //= 2
    largest = work[0]
    scale[0] = largest / np.float32(32767.0)
    factor = np.float32(32767.0) / largest if largest > np.float32(1e-35) else np.float32(0.0)
    for d in range(len(row)):
        numbers[d] = np.int16(np.int32(np.rint(row[d] * factor)))
    numbers[len(row) :] = 0


@compiled
def multiply_rows(
    numbers: NDArray[np.int16], steps: Floats, words: int, scales: int, products: Floats, start: int, count: int
) -> None:
    """Products of a head's queries with its first rows.

    Args:
        numbers, steps: (Q, padded D) and (Q,), as `round_queries` makes them
        words, scales: addresses of (tiles, slices, 16, 2) and (rows,)
        products: (Q, N), filled from column `start` on; what lies behind the rows is written over up to 16 columns on,
            which must be there
    """
    queries, slices = numbers.shape[0], numbers.shape[1] // DEEP
    vectors, apart = address(numbers), 2 * numbers.shape[1]
    results, row_apart = address(products) + 4 * start, 4 * products.shape[1]
    for begin in range(0, queries, TOGETHER):
        end = min(begin + TOGETHER, queries)
        for tile in range((count + LANES - 1) // LANES):
            first, per_row = words + tile * slices * SLICE_BYTES, scales + 4 * tile * LANES
            query = begin
            while query < end:
                to = results + query * row_apart + 4 * tile * LANES
                vector, step = vectors + query * apart, address(steps) + 4 * query
                if query + 4 <= end:
                    multiply_four(first, SLICE_BYTES, slices, vector, apart, per_row, step, to, row_apart)
                    query += 4
                else:
                    multiply_one(first, SLICE_BYTES, slices, vector, apart, per_row, step, to, row_apart)
                    query += 1


@compiled
def add_up_rows(weights: Floats, words: int, scales: int, sums: Floats, start: int, count: int) -> None:
    """Add a head's first rows, times weights, to sums.

    Args:
        weights: (Q, N), from column `start` on those of these rows; room for 16 more must be behind them
        words, scales: addresses of (octets, groups, 16, 2) and (rows,)
        sums: (Q, padded D)
    """
    queries, groups = weights.shape[0], sums.shape[1] // LANES
    ones, scaled = np.ones(LANES, np.float32), np.empty(CHUNK, np.float32)
    numbers, steps = np.empty((4, CHUNK), np.int16), np.empty(4, np.float32)
    stride, to_apart = groups * SLICE_BYTES, 4 * sums.shape[1]
    for chunk in range(0, count, CHUNK):
        rows = min(CHUNK, count - chunk)
        octets, blocks = (rows + DEEP - 1) // DEEP, (rows + LANES - 1) // LANES
        query = 0
        while query < queries:
            together = 4 if query + 4 <= queries else 1
            for i in range(together):
                mine = address(weights) + 4 * ((query + i) * weights.shape[1] + start + chunk)
                largest = np.float32(scale(mine, scales + 4 * chunk, address(scaled), blocks))
                steps[i] = largest / np.float32(32767.0)
                factor = np.float32(32767.0) / largest if largest > np.float32(1e-35) else np.float32(0.0)
                shorten(address(scaled), factor, address(numbers) + 2 * i * CHUNK, blocks)
                numbers[i, rows : blocks * LANES] = 0
            for group in range(groups):
                first = words + chunk // DEEP * stride + group * SLICE_BYTES
                to = address(sums) + query * to_apart + 4 * group * LANES
                vector, step = address(numbers), address(steps)
                if together == 4:
                    add_four(first, stride, octets, vector, 2 * CHUNK, address(ones), step, to, to_apart)
                else:
                    add_one(first, stride, octets, vector, 2 * CHUNK, address(ones), step, to, to_apart)
            query += together


@compiled
def round_queries(queries: Floats, numbers: NDArray[np.int16], scales: Floats) -> None:
    """Queries (Q, D) as 16-bit numbers (Q, padded D) and their scales (Q,)."""
    power = 1
    while power < queries.shape[1]:
        power *= 2
    work = np.empty(power, np.float32)
    for query in range(len(queries)):
        round_row(queries[query], numbers[query], scales[query : query + 1], work)


@compiled
def multiply(
    queries: Floats, words: Words, scales: Floats, products: Floats, start: int, count: int, first: int, last: int
) -> None:
    """`multiply_rows` of heads first, …, last - 1: queries (H, Q, D), all else with heads in front, too."""
    width = (queries.shape[2] + DEEP - 1) // DEEP * DEEP
    numbers, steps = np.empty((queries.shape[1], width), np.int16), np.empty(queries.shape[1], np.float32)
    room = np.empty((queries.shape[1], (count + LANES - 1) // LANES * LANES), np.float32)
    for head in range(first, last):
        round_queries(queries[head], numbers, steps)
        multiply_rows(numbers, steps, address(words[head]), address(scales[head]), room, 0, count)
        products[head, :, start : start + count] = room[:, :count]


@compiled
def add_up(
    weights: Floats, words: Words, scales: Floats, sums: Floats, start: int, count: int, first: int, last: int
) -> None:
    """`add_up_rows` of heads first, …, last - 1: everything with heads in front."""
    room = np.zeros((weights.shape[1], (count + LANES - 1) // LANES * LANES), np.float32)
    whole = np.empty((weights.shape[1], words.shape[2] * LANES), np.float32)
    for head in range(first, last):
        room[:, :count] = weights[head, :, start : start + count]
        whole[:] = 0.0
        add_up_rows(room, address(words[head]), address(scales[head]), whole, 0, count)
        sums[head] += whole[:, : sums.shape[2]]


def warm_up() -> None:
    """Compile now, or load what an earlier start compiled, rather than in somebody's first request."""
    words, ones = np.zeros((1, 2, 2, LANES, WORDS), np.uint16), np.ones((1, LANES), np.float32)
    row = np.ones((1, 1, LANES), np.float32)
    multiply(row, words, ones, np.empty_like(row), 0, 1, 0, 1)
    add_up(row, words, ones, np.zeros_like(row), 0, LANES, 0, 1)
