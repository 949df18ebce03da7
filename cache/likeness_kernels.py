"""CPU kernels that put rows in an order of likeness; see `cache.stretches`. Compiled by Numba when first called.

Sums go over rows one after the other, so that the order is the same wherever it is found. Letters in shapes: H heads, S
rows, D channels, a multiple of 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from cache.compiling import compiled
from cache.four_bits import LANES
from cache.lane_kernels import F32, I32, I64, REALS, address, at, dot, load, plus_product, same, spread, store

Floats = NDArray[np.float32]
Order = NDArray[np.int32]
Words = NDArray[np.uint32]
TINY = np.float32(1e-30)


@intrinsic  # type: ignore[untyped-decorator]
def add_rows(context: Any, rows: Any, order: Any, count: Any, weights: Any, to: Any, steps: Any) -> Any:
    """The sum of `count` rows, whose numbers and weights lie one after the other; all are told by addresses.

    Sums stay in registers: added up in memory they cost three times as much where addresses are alike.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        rows, order, count, weights, to, steps = arguments
        with cgutils.for_range(b, steps) as step:
            total, first = cgutils.alloca_once(b, REALS), at(b, rows, step.index)
            b.store(same(REALS, 0.0), total)
            with cgutils.for_range(b, count) as loop:
                place = b.mul(loop.index, I64(4))
                row = at(b, first, b.mul(b.zext(load(b, b.add(order, place), I32), I64), steps))
                weight = spread(b, load(b, b.add(weights, place), F32), REALS)
                b.store(plus_product(b, b.load(total), load(b, row, REALS), weight), total)
            store(b, b.load(total), at(b, to, step.index))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@compiled
def mean_of(rows: Floats, order: Order, ones: Floats, mean: Floats) -> None:
    """Of the rows (S, D) that an order tells."""
    add_rows(address(rows), address(order), len(order), address(ones), address(mean), len(mean) // LANES)
    for d in range(len(mean)):
        mean[d] /= np.float32(len(order))


@compiled
def square_off(rows: Floats, n: int, mean: Floats, off: Floats) -> np.float32:
    """The square of the distance of a row from a mean; off (D,) is filled with the difference."""
    for d in range(len(mean)):
        off[d] = rows[n, d] - mean[d]
    return dot(address(off), address(off), len(mean) // LANES)


@compiled
def multiply_by_way(rows: Floats, order: Order, way: Floats, along: Floats) -> None:
    """Products of rows with a direction (D,), in an order."""
    for i in range(len(order)):
        along[i] = dot(address(rows) + 4 * len(way) * order[i], address(way), len(way) // LANES)


@compiled
def main_way(
    rows: Floats, squares: Floats, order: Order, ones: Floats, turns: int, mean: Floats, along: Floats, way: Floats
) -> None:
    """About the direction in which rows scatter most (D,): that of the furthest one, bettered by powers.

    Args:
        squares: of the rows' lengths (S,)
        ones: as many, 1 each
        mean, along: worked with (D,) and as many as there are in the order
    """
    mean_of(rows, order, ones, mean)
    multiply_by_way(rows, order, mean, along)
    furthest, largest = order[0], np.float32(-np.inf)
    for i in range(len(order)):  # the square of its distance, less that of the mean's length
        square = squares[order[i]] - np.float32(2.0) * along[i]
        if square > largest:
            furthest, largest = order[i], square
    square_off(rows, furthest, mean, way)
    for _ in range(turns):
        steps, total = len(way) // LANES, np.float32(0.0)
        size = np.float32(1.0) / max(np.sqrt(dot(address(way), address(way), steps)), TINY)
        for d in range(len(way)):
            way[d] *= size
        middle = dot(address(mean), address(way), steps)
        multiply_by_way(rows, order, way, along)
        for i in range(len(order)):
            along[i] -= middle
            total += along[i]
        add_rows(address(rows), address(order), len(order), address(along), address(way), steps)
        for d in range(len(way)):
            way[d] -= total * mean[d]


@compiled
def halve(order: Order, along: Floats, others: Order) -> None:
    """Let the half of an order whose numbers `along` are lower come first; within a half the order stays.

    Args:
        others: room of as many numbers
    """
    half = len(order) // 2
    border, ties = np.partition(along, half)[half], half
    for value in along:
        if value < border:
            ties -= 1
    low, high = 0, 0
    for i in range(len(order)):
        lower = along[i] < border
        if not lower and ties and along[i] == border:
            lower, ties = True, ties - 1
        if lower:
            order[low] = order[i]
            low += 1
        else:
            others[high] = order[i]
            high += 1
    order[low:] = others[:high]


@compiled
def put_in_order(
    rows: Floats, numbers: Order, means: Floats, reaches: Floats, turns: int, usual: float, furthest: float, first: int,
    last: int,
) -> None:  # fmt: skip
    """Of heads first, …, last - 1.

    Args:
        rows: (H, S, D)
        numbers: the order (H, S), filled
        means: of 16 rows each (H, S / 16, D), filled
        reaches: `usual` times how far its rows are off their mean, by squares, and `furthest` times how far the
            furthest one is (H, S / 16), filled
        turns: see `main_way`
    """
    count, width = rows.shape[1:]
    mean, way, ones = np.empty(width, np.float32), np.empty(width, np.float32), np.ones(count, np.float32)
    along, squares, others = np.empty(count, np.float32), np.empty(count, np.float32), np.empty(count, np.int32)
    for head in range(first, last):
        mine, order, size = rows[head], numbers[head], count
        for n in range(count):
            order[n] = n
            squares[n] = dot(address(mine[n]), address(mine[n]), width // LANES)
        while size > LANES:
            for begin in range(0, count, size):
                part, products = order[begin : begin + size], along[:size]
                main_way(mine, squares, part, ones, turns, mean, products, way)
                multiply_by_way(mine, part, way, products)
                halve(part, products, others[:size])
            size //= 2
        for tile in range(count // LANES):
            part, total = order[tile * LANES : (tile + 1) * LANES], np.float32(0.0)
            largest = np.float32(0.0)
            mean_of(mine, part, ones, means[head, tile])
            for lane in range(LANES):
                square = square_off(mine, part[lane], means[head, tile], way)
                total, largest = total + square, max(largest, square)
            off = np.float32(usual) * np.sqrt(total / np.float32(LANES))
            reaches[head, tile] = off + np.float32(furthest) * np.sqrt(largest)


@compiled
def copy_rows(
    words: Words, scales: Floats, start: int, stop: int, places: Order, to_words: Words, to_scales: Floats
) -> None:
    """Copy rows start, …, stop - 1 of `ByRow` to places (H, stop - start).

    Args:
        words, to_words: four bytes as one number (H, tiles, slices, 16)
        scales, to_scales: (H, rows)
    """
    for head in range(len(words)):
        for n in range(start, stop):
            place = places[head, n - start]
            to_scales[head, place] = scales[head, n]
            for part in range(words.shape[2]):
                to_words[head, place // LANES, part, place % LANES] = words[head, n // LANES, part, n % LANES]


def warm_up() -> None:
    """Compile now, or load what an earlier start compiled, rather than in somebody's first request."""
    rows, means = np.zeros((1, 2 * LANES, LANES), np.float32), np.empty((1, 2, LANES), np.float32)
    order, words = np.empty((1, 2 * LANES), np.int32), np.zeros((1, 2, 2, LANES), np.uint32)
    put_in_order(rows, order, means, np.empty((1, 2), np.float32), 1, 1.0, 1.0, 0, 1)
    copy_rows(words, rows[..., 0].copy(), 0, 2 * LANES, order, words.copy(), rows[..., 0].copy())
