"""CPU kernels that walk through an index in 4 bits by its addresses (`BlockIndex.table`), one head and part at a time.

Compiled by Numba when first called. Letters in shapes: Q queries, N vectors, R the next multiple of 16 and 64 more, D
channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cache.compiling import compiled
from cache.four_bit_kernels import add_up_rows, chunks_of, multiply_rows
from cache.four_bits import LANES
from cache.lane_kernels import CHUNK, address, copy, shorten

Floats = NDArray[np.float32]
Small = NDArray[np.int8]
Starts = NDArray[np.int32]
Integers = NDArray[np.int64]
MEAN, VARIANCE, VALUES, SLOPE_KEYS, SLOPE_VALUES = range(5)
"""Parts of an index for `moments`, in the table's order."""


@compiled
def steps_of(count: int) -> int:
    return (count + LANES - 1) // LANES


@compiled
def words_at(row: Integers, part: int, head: int, inside: int, channels: int) -> int:
    """Where the words of one segment's vectors lie from the vector `inside` on, a multiple of 16."""
    return row[2 + 2 * part] + (head * row[0] + inside) * channels // 2


@compiled
def scales_at(row: Integers, part: int, head: int, inside: int) -> int:
    """Where the scales of one segment's vectors lie from the vector `inside` on; arguments as `multiply_at`."""
    return row[3 + 2 * part] + 4 * (head * row[0] + inside)


@compiled
def multiply_at(
    row: Integers, part: int, head: int, inside: int, numbers: Small, starts: Starts, sizes: Floats, products: Floats,
    start: int, count: int,
) -> None:  # fmt: skip
    """Products (Q, R), from column `start` on, of a head's queries with `count` vectors of one segment.

    Args:
        row: of the index's table
        inside: the first of these vectors in the segment, a multiple of 16
    """
    words = words_at(row, part, head, inside, numbers.shape[1])
    multiply_rows(numbers, starts, sizes, words, scales_at(row, part, head, inside), products, start, count)


@compiled
def multiply_part(
    table: Integers, part: int, head: int, numbers: Small, starts: Starts, sizes: Floats, products: Floats, count: int
) -> None:
    """Products (Q, R) of a head's queries with the first `count` vectors of a part, whose lanes are rows."""
    start = 0
    for segment in range(len(table)):
        taken = min(table[segment, 1], count - start)
        if taken > 0:
            multiply_at(table[segment], part, head, 0, numbers, starts, sizes, products, start, taken)
            start += taken


@compiled
def scales_of(table: Integers, part: int, head: int, count: int, scales: Floats) -> None:
    """The scales of the first `count` vectors of a part, and zeros up to a multiple of 64."""
    start = 0
    for segment in range(len(table)):
        taken = min(table[segment, 1], count - start)
        if taken > 0:
            copy(scales_at(table[segment], part, head, 0), address(scales) + 4 * start, steps_of(taken))
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
        taken = min(table[segment, 1], count - start)
        if taken > 0:
            words = words_at(table[segment], part, head, 0, sums.shape[1])
            add_up_rows(numbers, starts, sizes, 4 * room, start, words, sums, taken, CHUNK)
            start += taken


@compiled
def add_squares(variances: Floats, products: Floats, count: int) -> None:
    """Add to variances (Q, R) what keys scatter along a direction, from `count` products with it."""
    for row in range(len(variances)):
        for n in range(count):
            variances[row, n] += products[row, n] * products[row, n]


@compiled
def by_turn(products: Floats, weights: Floats, count: int, padded: int) -> None:
    """Weights times products with slopes, in their place (Q, R), and zeros from `count` to `padded`."""
    for row in range(len(products)):
        for n in range(count):
            products[row, n] *= weights[row, n]
        products[row, count:padded] = 0.0
