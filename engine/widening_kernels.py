"""CPU kernels that multiply a few rows of bf16 with a matrix of bf16 or 8-bit weights, without instructions for bf16.

Neighbouring numbers of bf16 are one word of 32 bits: its upper half is one of them as fp32 but for what the other one
leaves below, and shifted up it is the other one. So both are widened on the way, weights and inputs alike, by a shift
and a mask for a whole vector, and nothing is put in order before. Weights of 8 bits become such pairs as whole numbers
first, times 65,536, which is a power of two and is taken back in the end.

Products and sums are those of fp32, rounded to bf16 once. Every sum runs through the channels in one order, however
many rows are computed together: a row's result does not depend on others.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache import compiled, job, kernels
from engine.linear_kernels import lane_sums
from engine.short_kernels import half_of, read_short, write_short

lanes, team = kernels("lane"), kernels("team")
I8, I16, I32, I64, F32, LANES = lanes.I8, lanes.I16, lanes.I32, lanes.I64, lanes.F32, lanes.LANES
WIDTH = 2 * LANES
"""Channels that are read at once."""
VECTOR = LANES if lanes.knows("avx512f") else LANES // 2
"""Numbers of a vector, as the processor has them."""
PARTS = LANES // VECTOR
WORDS, REALS = ir.VectorType(I32, VECTOR), ir.VectorType(F32, VECTOR)
RAISED = 65536.0
"""What weights of 8 bits are multiplied with on the way."""
TALL = 4 if PARTS == 1 else 2
"""Rows of the matrix that are read together. With two inputs and rows of two parts their sums fill half of 16 vectors;
with three they would fill twelve, which is slower (9 for 10 of such products on a Zen 2). Where vectors have 64
bytes there are 32 of them, and a sum is one part."""
AHEAD = 4096
"""Bytes: so far ahead the matrix is asked for."""


class Short:
    """How pairs of neighbouring bf16 numbers are read, and widened: the lower one of each, or the upper one."""

    width, raised = 2, 1.0

    @staticmethod
    def read(builder: Any, address: Any) -> Any:
        return lanes.load(builder, address, WORDS, 2)

    @staticmethod
    def widen(builder: Any, words: Any, upper: bool) -> Any:
        return builder.bitcast(half_of(builder, words, upper), REALS)


class Small:
    """The same of 8-bit numbers, times RAISED."""

    width, raised = 1, RAISED

    @staticmethod
    def read(builder: Any, address: Any) -> Any:
        small = lanes.load(builder, address, ir.VectorType(I8, 2 * VECTOR), 1)
        return builder.bitcast(builder.sext(small, ir.VectorType(I16, 2 * VECTOR)), WORDS)

    @staticmethod
    def widen(builder: Any, words: Any, upper: bool) -> Any:
        return builder.sitofp(half_of(builder, words, upper), REALS)


def tile_kernel(tall: int, rows: int, kind: type[Short | Small] = Short) -> Any:
    """Products of `tall` rows of the matrix with `rows` inputs; the arguments are those of `pair_kernels`' tiles.

    A step is 32 channels.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        context: Any, weights: Any, apart: Any, inputs: Any, inputs_apart: Any, steps: Any, asked: Any, pace: Any,
        scales: Any, bias: Any, to: Any, to_apart: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            weights, apart, inputs, inputs_apart, steps, asked, pace, scales, bias, to, to_apart = arguments
            nothing = lanes.same(REALS, 0.0)
            sums = [
                [[cgutils.alloca_once_value(b, nothing) for _ in range(PARTS)] for _ in range(tall)]
                for _ in range(rows)
            ]
            starts = [b.add(inputs, b.mul(inputs_apart, I64(row))) for row in range(rows)]
            firsts = [b.add(weights, b.mul(apart, I64(i))) for i in range(tall)]
            between = b.sdiv(pace, I64(tall))
            with cgutils.for_range(b, steps) as loop:
                here = b.mul(loop.index, I64(WIDTH))  # channels
                next_ = b.add(asked, b.mul(loop.index, pace))
                for i in range(tall):
                    lanes.ask(b, b.add(next_, b.mul(between, I64(i))), nearest=False)
                for part in range(PARTS):
                    channel = b.add(here, I64(part * 2 * VECTOR))
                    mine = [kind.read(b, b.add(first, b.mul(channel, I64(kind.width)))) for first in firsts]
                    given = [Short.read(b, b.add(start, b.mul(channel, I64(Short.width)))) for start in starts]
                    for upper in (False, True):
                        factors = [kind.widen(b, words, upper) for words in mine]
                        for row, words in enumerate(given):
                            x = Short.widen(b, words, upper)
                            for i, factor in enumerate(factors):
                                total = sums[row][i][part]
                                b.store(lanes.plus_product(b, b.load(total), factor, x), total)
            for row, all_sums in enumerate(sums):
                whole = lane_sums(b, [joined(b, [b.load(part) for part in parts]) for parts in all_sums])
                whole = finished(b, whole, 1 / kind.raised, scales, bias)
                write_short(b, whole, b.add(to, b.mul(to_apart, I64(row))))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 11), generate

    return tile


def joined(builder: Any, parts: list[Any]) -> Any:
    """Vectors side by side as one."""
    if len(parts) == 1:
        return parts[0]
    order = ir.Constant(ir.VectorType(I32, LANES), list(range(LANES)))
    return builder.shuffle_vector(*parts, order)


def finished(builder: Any, totals: Any, factor: float, scales: Any, bias: Any) -> Any:
    """Sums times a factor, times their fp32 scales and with their bf16 biases, where there are any."""
    b, zero, count = builder, I64(0), totals.type.count
    result = cgutils.alloca_once_value(b, totals)
    b.store(b.fmul(totals, lanes.same(totals.type, factor)) if factor != 1 else totals, result)
    with b.if_then(b.icmp_signed("!=", scales, zero)):
        b.store(b.fmul(b.load(result), lanes.load(b, scales, totals.type)), result)
    with b.if_then(b.icmp_signed("!=", bias, zero)):
        b.store(b.fadd(b.load(result), read_short(b, bias, count)), result)
    return b.load(result)


short_one, short_two = (tile_kernel(TALL, rows) for rows in (1, 2))
small_one, small_two = (tile_kernel(TALL, rows, Small) for rows in (1, 2))
short_flat, small_flat = tile_kernel(1, 1), tile_kernel(1, 1, Small)


@compiled
def short_tile(
    tall: int, count: int, weights: int, apart: int, inputs: int, steps: int, asked: int, pace: int, scales: int,
    bias: int, to: int, to_apart: int,
) -> None:  # fmt: skip
    """Products of TALL rows of bf16 weights with one or two inputs, or of one row with one."""
    wide = 2 * WIDTH * steps
    if tall < TALL:
        short_flat(weights, apart, inputs, wide, steps, asked, pace, scales, bias, to, to_apart)
    elif count == 2:
        short_two(weights, apart, inputs, wide, steps, asked, pace, scales, bias, to, to_apart)
    else:
        short_one(weights, apart, inputs, wide, steps, asked, pace, scales, bias, to, to_apart)


@compiled
def small_tile(
    tall: int, count: int, weights: int, apart: int, inputs: int, steps: int, asked: int, pace: int, scales: int,
    bias: int, to: int, to_apart: int,
) -> None:  # fmt: skip
    """The same of weights in 8 bits."""
    wide = 2 * WIDTH * steps
    if tall < TALL:
        small_flat(weights, apart, inputs, wide, steps, asked, pace, scales, bias, to, to_apart)
    elif count == 2:
        small_two(weights, apart, inputs, wide, steps, asked, pace, scales, bias, to, to_apart)
    else:
        small_one(weights, apart, inputs, wide, steps, asked, pace, scales, bias, to, to_apart)


@compiled
def multiply_some(arguments: int, first: int, last: int, width: int, scales: int) -> None:
    """Products of inputs with rows first, …, last - 1 of a matrix of weights of so many bytes.

    Each tile of it is read for two inputs, then for the next ones; meanwhile what comes behind it is asked for.
    """
    weights, to_apart, channels = team.read(arguments), 2 * team.read(arguments + 8), team.read(arguments + 16)
    inputs, rows = team.read(arguments + 24), team.read(arguments + 32)
    products, bias = team.read(arguments + 40), team.read(arguments + 48)
    apart, steps, output = width * channels, channels // WIDTH, first
    while output < last:
        tall, row = TALL if output + TALL <= last else 1, 0
        at, to = weights + output * apart, products + 2 * output
        asked = at + max(tall * apart, AHEAD)
        pace = tall * apart // (steps * ((rows + 1) // 2))
        more, scale = bias + 2 * output if bias else 0, scales + 4 * output if scales else 0
        while row < rows:
            count = 2 if tall == TALL and row + 2 <= rows else 1
            x, place = inputs + 2 * channels * row, to + to_apart * row
            if width == 1:
                small_tile(tall, count, at, apart, x, steps, asked, pace, scale, more, place, to_apart)
            else:
                short_tile(tall, count, at, apart, x, steps, asked, pace, scale, more, place, to_apart)
            row += count
            asked += pace * steps
        output += tall


def multiply(arguments: int, first: int, last: int) -> None:
    """As `pair_kernels.multiply`."""
    multiply_some(arguments, first, last, 2, 0)


def multiply_small(arguments: int, first: int, last: int) -> None:
    """As `byte_kernels.multiply`."""
    multiply_some(arguments, first, last, 1, team.read(arguments + 56))


@functools.cache
def multiply_job(dtype: torch.dtype) -> int:
    """Address of what multiplies such weights, as a job."""
    return job(multiply_small if dtype == torch.int8 else multiply)
