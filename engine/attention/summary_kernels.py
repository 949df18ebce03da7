"""CPU kernels that summarise blocks whose keys and values are read where they lie.

What `cache.landmarks.moments` and `cache.slopes` say of a block, one block after the other; sums go over positions and
over channels in their order, so what is kept of a block does not depend on what is summarised with it. Letters in
shapes: H KV heads, N blocks, B positions of a block, D channels, S channels that turn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from cache import compiled, kernels
from engine.attention.place_kernels import turn
from engine.linear_kernels import widen

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
lanes = kernels("lane")
address, LANES, I64, REALS = lanes.address, lanes.LANES, lanes.I64, lanes.REALS
TINY = np.float32(np.finfo(np.float32).tiny)


@compiled
def last_keys(keys: NDArray[Any], places: Integers, size: int, to: Floats, first: int, last: int) -> None:
    """Of heads first, …, last - 1 the key of each block's last position.

    Args:
        keys: of the cache (places * B, D), fp32 or the bits of bf16
        places: of the blocks (H, N)
        to: (H, N, D), filled
    """
    dim = to.shape[2]
    for head in range(first, last):
        for n in range(places.shape[1]):
            at = (places[head, n] * size + size - 1) * dim * keys.itemsize
            widen(keys, at, address(to[head, n]), dim // LANES, 0)


@compiled
def apart(rows: Floats, mean: Floats) -> None:
    """Rows (B, D) less their mean (D,), which is filled."""
    mean[:] = np.float32(0)
    for row in rows:
        for d in range(len(mean)):
            mean[d] += row[d]
    for d in range(len(mean)):
        mean[d] /= np.float32(len(rows))
    for row in rows:
        for d in range(len(mean)):
            row[d] -= mean[d]


@intrinsic  # type: ignore[untyped-decorator]
def add_rows(context: Any, rows: Any, apart: Any, weights: Any, count: Any, to: Any, steps: Any) -> Any:
    """The sum of so many rows of 16 * steps numbers, so many bytes apart, by a weight of each; all are addresses."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        rows, apart, weights, count, to, steps = arguments
        with cgutils.for_range(b, steps) as outer:
            total, start = cgutils.alloca_once_value(b, lanes.same(REALS, 0.0)), lanes.at(b, rows, outer.index)
            with cgutils.for_range(b, count) as inner:
                row = lanes.load(b, b.add(start, b.mul(inner.index, apart)), REALS)
                weight = lanes.load(b, b.add(weights, b.mul(inner.index, I64(4))), lanes.F32)
                b.store(lanes.plus_product(b, b.load(total), row, lanes.spread(b, weight, REALS)), total)
            lanes.store(b, b.load(total), lanes.at(b, to, outer.index))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@compiled
def add_up(rows: Floats, weights: Floats, total: Floats) -> None:
    """The sum (X,) of rows (N, X) by weights (N,), X a multiple of 16."""
    size = rows.shape[1]
    add_rows(address(rows), 4 * size, address(weights), len(rows), address(total), size // LANES)


@compiled
def scaled(x: Floats, count: int) -> None:
    """Divide numbers by the root of the sum of their squares, of which `count` count as one."""
    total = np.float32(0)
    for each in x:
        total += each * each
    size = max(np.sqrt(total / np.float32(count)), TINY)
    for i in range(len(x)):
        x[i] /= size


@compiled
def moments(
    keys: NDArray[Any], values: NDArray[Any], places: Integers, size: int, turns: Floats, interleaved: bool,
    rounds: int, landmarks: Floats, means: Floats, along: Floats, turning: Floats, first: int, last: int,
) -> None:  # fmt: skip
    """Summaries of the blocks of heads first, …, last - 1.

    Args:
        keys, values: of the cache (places * B, D), fp32 or the bits of bf16
        places: of the blocks (H, N)
        turns: cosine and sine of each block's first position (N, 2, S), S 0 where keys stay as they are
        rounds: of the search for a direction
        landmarks: mean of the keys and variances without what the slope tells (H, N, 2 * D), filled
        means: of the values (H, N, D), filled
        along, turning: both vectors of the slope (H, N, D), filled
    """
    dim = means.shape[2]
    room, mine, its = np.empty(dim, np.float32), np.empty((size, dim), np.float32), np.empty((size, dim), np.float32)
    padded = -(-size // LANES) * LANES
    columns, padding, direction = np.zeros((dim, padded), np.float32), np.empty(padded, np.float32), np.empty_like(room)
    products = padding[:size]
    for head in range(first, last):
        for n in range(places.shape[1]):
            for b in range(size):
                at = (places[head, n] * size + b) * dim
                widen(keys, at * keys.itemsize, address(room), dim // LANES, 0)
                turn(room, turns[n, 0], turns[n, 1], interleaved, mine[b])
                widen(values, at * values.itemsize, address(its[b]), dim // LANES, 0)
            mean, variance = landmarks[head, n, :dim], landmarks[head, n, dim:]
            apart(mine, mean)
            apart(its, means[head, n])
            for b in range(size):
                for d in range(dim):
                    columns[d, b] = mine[b, d]
            products[:], variance[:] = np.float32(0), np.float32(0)
            for d in range(dim):
                for b in range(size):
                    products[b] += columns[d, b] * columns[d, b]
            for b in range(size):
                for d in range(dim):
                    variance[d] += mine[b, d] * mine[b, d]
            direction[:] = mine[np.argmax(products)]
            for _ in range(rounds):
                add_up(columns, direction, padding)
                add_up(mine, products, direction)
                scaled(direction, 1)
            add_up(columns, direction, padding)
            scaled(products, size)
            add_up(mine, products, along[head, n])
            add_up(its, products, turning[head, n])
            for d in range(dim):
                along[head, n, d] /= np.float32(size)
                turning[head, n, d] /= np.float32(size)
                told = along[head, n, d] * along[head, n, d]
                variance[d] = max(np.float32(0), variance[d] / np.float32(size) - told)


def warm_up(kept: np.dtype[Any]) -> None:
    """Compile now for a cache of this type, or load what an earlier start compiled."""
    pool, none, places = np.empty((0, LANES), kept), np.empty((0, 0, LANES), np.float32), np.empty((0, 0), np.int64)
    last_keys(pool, places, 1, none, 0, 0)
    moments(pool, pool, places, 1, np.empty((0, 2, 0), np.float32), False, 1, *[none] * 4, 0, 0)
