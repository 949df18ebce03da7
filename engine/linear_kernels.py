"""CPU kernels that multiply a few rows with a matrix of 16-bit weights, compiled by Numba when they are first called.

A decoded token reads every weight once, so the memory's bandwidth is the limit; what it takes is to widen the weights
on the way and to read each once for all rows. The inner loops are written for LLVM itself, so that sums stay in
registers. Measured beside torch on a CPU without bf16 instructions, two threads: as fast as `torch.mv` for one row
(1.5 times `linear`), 5 times `linear` for 4 rows and 4 times for 8.

For more rows than eight arithmetic is the limit, and vectors across channels, which must be summed up in the end, are
not the best any more: there a vector holds one channel of 16 rows, and every weight, widened before in a piece that
stays in the nearest cache, is multiplied with all of them. For 16 rows that is 1.3 times as fast.

How many rows are multiplied together decides in how many parts each sum is added up, so it may change a last bit, as it
does in torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from cache import compiled, kernels

lanes = kernels("lane")
LANES, I32, I64, F32, REALS = lanes.LANES, lanes.I32, lanes.I64, lanes.F32, lanes.REALS
load, store, address, at, plus_product = lanes.load, lanes.store, lanes.address, lanes.at, lanes.plus_product
TALL = 4
"""Rows of the matrix that are read together."""
ROOMY = lanes.knows("avx512f")
"""Whether registers bear 16 sums of 16 lanes: those of AVX2 bear 8 at most, and what is multiplied needs some, too."""
FAR = 16384
"""Bytes: the rows that come next are asked for while these are read, as long as the nearest cache holds both."""
NEAR = 1024
"""Bytes: otherwise what comes next in the same rows."""
HIGH = 16
"""Rows of the matrix that are multiplied together with 16 inputs."""
PIECE = 128
"""Channels of them that are widened at once."""
HALVES, BITS = ir.VectorType(ir.IntType(16), LANES), ir.VectorType(I32, LANES)


def widened(builder: Any, address: Any, kind: Any) -> Any:
    """Sixteen weights as fp32. Bits of bf16 come as uint16 and are the upper half of fp32, those of fp16 as int16."""
    if kind == types.float32:
        return load(builder, address, REALS, 4)
    if kind == types.int8:
        return builder.sitofp(builder.sext(load(builder, address, lanes.SMALL, 1), BITS), REALS)
    halves = load(builder, address, HALVES, 2)
    if kind == types.uint16:
        shifted = builder.shl(builder.zext(halves, BITS), ir.Constant(BITS, [16] * LANES))
        return builder.bitcast(shifted, REALS)
    return builder.fpext(builder.bitcast(halves, ir.VectorType(ir.HalfType(), LANES)), REALS)


def lane_sums(builder: Any, vectors: list[Any]) -> Any:
    """The sum over the lanes of each of 1, 2, 4, 8 or 16 vectors, as one vector of that many lanes."""
    return over_each(builder, vectors, builder.fadd)


def over_each(builder: Any, vectors: list[Any], join: Callable[[Any, Any], Any]) -> Any:
    """What joins all lanes, in any order, of each of 1, 2, 4, 8 or 16 vectors, as one vector of that many lanes.

    Two vectors whose results are still spread over runs of lanes become one, with runs half as long: of each run one
    half is where it was, which takes a blend, for which there are more ports than for a shuffle, and the other half is
    swapped with the other vector's. Runs of one vector are folded.
    """
    run = LANES
    vectors = [vectors[place] for place in from_behind(len(vectors))]
    while run > 1:
        run //= 2
        lanes_left = vectors[0].type.count
        starts = range(0, lanes_left, 2 * run)
        if len(vectors) > 1:
            kept = [start + i + half * (lanes_left + run) for start in starts for half in (0, 1) for i in range(run)]
            swapped = [
                start + i + (1 - half) * run + half * lanes_left
                for start in starts
                for half in (0, 1)
                for i in range(run)
            ]
            pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
        else:
            kept, swapped = ([start + i + half for start in starts for i in range(run)] for half in (0, run))
            pairs = [(vectors[0], vectors[0])]
        masks = [ir.Constant(ir.VectorType(I32, len(places)), places) for places in (kept, swapped)]
        vectors = [join(*(builder.shuffle_vector(one, other, mask) for mask in masks)) for one, other in pairs]
    return vectors[0]


def from_behind(count: int) -> list[int]:
    """0, …, count - 1, a power of two, ordered by their bits from the last one on."""
    return [0] if count == 1 else [2 * i + odd for odd in (0, 1) for i in from_behind(count // 2)]


def ask_lines(builder: Any, address: Any, count: int) -> None:
    """Ask for so many bytes from an address on, into the cache behind the nearest one, which what is read fills."""
    for line in range(0, count, lanes.LINE):
        lanes.ask(builder, builder.add(address, I64(line)), nearest=False)


def tile_kernel(tall: int, rows: int) -> Any:
    """Products of `tall` rows of the matrix with `rows` inputs, of which the channels are a multiple of 16.

    The result takes the weights, and addresses and strides in bytes: from the first weight to that of the first row,
    the stride to the next row; how far ahead of a weight to ask for others; the first input, the stride to the next
    one; how many times 16 channels; where the first product goes, and the stride between inputs'.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        context: Any, weights: Any, offset: Any, apart: Any, ahead: Any, inputs: Any, inputs_apart: Any, steps: Any,
        to: Any, to_apart: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            array, offset, apart, ahead, inputs, inputs_apart, steps, to, to_apart = arguments
            kind = signature.args[0]
            width = kind.dtype.bitwidth // 8
            weights = b.add(b.ptrtoint(context.make_array(kind)(context, b, array).data, I64), offset)
            nothing = ir.Constant(REALS, [0.0] * LANES)
            # a sum has to wait for the one before it, so there are two of each product where registers suffice
            parts = 2 if tall * rows <= 8 else 1
            sums = [
                [[cgutils.alloca_once_value(b, nothing) for _ in range(parts)] for _ in range(rows)]
                for _ in range(tall)
            ]
            starts = [b.add(inputs, b.mul(inputs_apart, I64(row))) for row in range(rows)]
            firsts = [b.add(weights, b.mul(apart, I64(i))) for i in range(tall)]

            def add(step: Any, which: int, few: range) -> None:
                x = [load(b, at(b, start, step), REALS) for start in starts]
                for i in few:
                    first = firsts[i]
                    weight = widened(b, at(b, first, step, width), kind.dtype)
                    for row in range(rows):
                        total = sums[i][row][which % parts]
                        b.store(plus_product(b, b.load(total), weight, x[row]), total)

            at_once = tall if ROOMY or rows == 1 else 1  # rows of the matrix; sums are the same either way
            for begin in range(0, tall, at_once):
                few = range(begin, begin + at_once)
                with cgutils.for_range(b, b.lshr(steps, I64(1))) as loop:
                    step = b.shl(loop.index, I64(1))
                    for first in firsts[begin : begin + at_once]:
                        ask_lines(b, b.add(at(b, first, step, width), ahead), 2 * LANES * width)
                    for which in (0, 1):
                        add(b.add(step, I64(which)), which, few)
                with b.if_then(b.trunc(steps, ir.IntType(1))):
                    add(b.sub(steps, I64(1)), 0, few)
            tile = [sums[i][row] for row in range(rows) for i in range(tall)]
            loaded = [[b.load(part) for part in product] for product in tile]
            ordered = [b.fadd(*each) if parts == 2 else each[0] for each in loaded]
            totals = lane_sums(b, ordered)
            for row in range(rows):
                mine = ir.Constant(ir.VectorType(I32, tall), list(range(row * tall, (row + 1) * tall)))
                store(b, b.shuffle_vector(totals, totals, mine), b.add(to, b.mul(to_apart, I64(row))))
            return context.get_dummy_value()

        return types.void(weights, *[types.intp] * 8), generate

    return tile


tall_one, tall_two, tall_four = (tile_kernel(TALL, rows) for rows in (1, 2, 4))
flat_one, flat_two, flat_four = (tile_kernel(1, rows) for rows in (1, 2, 4))


@compiled
def multiply(
    weights: NDArray[Any], inputs: int, inputs_apart: int, to: int, to_apart: int, rows: int, first: int, last: int
) -> None:
    """Products of inputs with rows first, …, last - 1 of the matrix, of which what comes next is asked for.

    Args:
        weights: (outputs, channels): fp32, the bits of bf16 as uint16, those of fp16 as int16, or int8
        inputs, inputs_apart: address of fp32 inputs (rows, channels), and bytes from one to the next
        to, to_apart: where the product of the first one with row `first` goes, and bytes to the next one's
    """
    channels = weights.shape[1]
    apart, steps = weights.itemsize * channels, channels // LANES
    ahead = TALL * apart if TALL * apart <= FAR else NEAR
    output = first
    while output < last:
        tall = TALL if output + TALL <= last else 1
        at, row = output * apart, 0
        while row < rows:
            x, place = inputs + row * inputs_apart, to + row * to_apart + 4 * (output - first)
            if rows - row >= 4:
                if tall == TALL:
                    tall_four(weights, at, apart, ahead, x, inputs_apart, steps, place, to_apart)
                else:
                    flat_four(weights, at, apart, ahead, x, inputs_apart, steps, place, to_apart)
                row += 4
            elif rows - row >= 2:
                if tall == TALL:
                    tall_two(weights, at, apart, ahead, x, inputs_apart, steps, place, to_apart)
                else:
                    flat_two(weights, at, apart, ahead, x, inputs_apart, steps, place, to_apart)
                row += 2
            else:
                if tall == TALL:
                    tall_one(weights, at, apart, ahead, x, inputs_apart, steps, place, to_apart)
                else:
                    flat_one(weights, at, apart, ahead, x, inputs_apart, steps, place, to_apart)
                row += 1
        output += tall


@intrinsic  # type: ignore[untyped-decorator]
def widen(context: Any, weights: Any, offset: Any, to: Any, steps: Any, ahead: Any) -> Any:
    """Write 16 * steps weights as fp32, from one so many bytes behind the first; ask for those `ahead` bytes on."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        array, offset, to, steps, ahead = arguments
        kind = signature.args[0]
        width = kind.dtype.bitwidth // 8
        start = b.add(b.ptrtoint(context.make_array(kind)(context, b, array).data, I64), offset)
        with cgutils.for_range(b, steps) as loop:
            here = at(b, start, loop.index, width)
            lanes.ask(b, b.add(here, ahead))
            store(b, widened(b, here, kind.dtype), at(b, to, loop.index))
        return context.get_dummy_value()

    return types.void(weights, *[types.intp] * 4), generate


@intrinsic  # type: ignore[untyped-decorator]
def add_products(context: Any, wide: Any, apart: Any, columns: Any, steps: Any, to: Any) -> Any:
    """Add products of HIGH rows of fp32 weights, so many bytes apart, with `steps` channels of 16 inputs.

    Takes the addresses of the weights, of the inputs (steps, 16), and of the sums (HIGH, 16).
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        wide, apart, columns, steps, to = arguments
        sums = [cgutils.alloca_once_value(b, load(b, at(b, to, I64(i)), REALS)) for i in range(HIGH)]
        with cgutils.for_range(b, steps) as loop:
            inputs, weight = load(b, at(b, columns, loop.index), REALS), b.add(wide, b.mul(loop.index, I64(4)))
            for i in range(HIGH):
                factor = lanes.spread(b, load(b, b.add(weight, b.mul(apart, I64(i))), F32), REALS)
                b.store(plus_product(b, b.load(sums[i]), factor, inputs), sums[i])
        for i in range(HIGH):
            store(b, b.load(sums[i]), at(b, to, I64(i)))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


@compiled
def multiply_columns(
    weights: NDArray[Any], columns: NDArray[Any], products: NDArray[Any], first: int, last: int
) -> None:
    """Products of 16 inputs with rows first, …, last - 1 of the matrix.

    Args:
        weights: (outputs, channels), as in `multiply`
        columns: the inputs fp32 (channels, 16)
        products: (outputs, 16) fp32, filled
    """
    channels, width = weights.shape[1], weights.itemsize
    wide, room = np.empty((HIGH, PIECE + LANES), np.float32), np.empty((HIGH, LANES), np.float32)
    for output in range(first, last, HIGH):
        tall = min(HIGH, last - output)
        room[:] = 0.0
        for channel in range(0, channels, PIECE):
            steps = min(PIECE, channels - channel)
            for i in range(tall):
                start = width * ((output + i) * channels + channel)
                widen(weights, start, address(wide) + 4 * i * wide.shape[1], steps // LANES, width * HIGH * channels)
            begin = address(columns) + 4 * LANES * channel
            add_products(address(wide), 4 * wide.shape[1], begin, steps, address(room))
        products[output : output + tall] = room[:tall]
