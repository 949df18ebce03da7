"""A CPU kernel that multiplies a few rows with a matrix of bf16 weights by instructions for that (AVX512-BF16).

One instruction takes 32 weights and 32 inputs as they are, adds the products of neighbours, and those to 16 sums. So
arithmetic takes half of what it takes in fp32, and 16 rows take little longer than reading the matrix. Every sum runs
through the channels in one order, however many rows are computed together: a row's result does not depend on others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache import compiled, job, kernels
from engine.linear_kernels import lane_sums
from engine.short_kernels import Bfloat

lanes, team = kernels("lane"), kernels("team")
I32, I64, F32, REALS, LANES = lanes.I32, lanes.I64, lanes.F32, lanes.REALS, lanes.LANES
WIDTH = 32
"""Weights of one instruction."""
BYTES = 64
"""Of a row that are read at once."""
TALL = 4
"""Rows of the matrix that are read together, for more inputs than one."""
AHEAD = 4096
"""Bytes: so far ahead one input asks for the matrix, which it then reads as it lies in memory, one row after the other.
Four rows side by side take 1.1 times as long where two cores read 60 GB/s, and as long where they read 33."""


PAIRS = ir.VectorType(Bfloat(), WIDTH)


def add_pairs(builder: Any, sums: Any, weights: Any, inputs: Any) -> Any:
    kind = ir.FunctionType(REALS, [REALS, PAIRS, PAIRS])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(function, [sums, weights, inputs])


@dataclass(frozen=True)
class Matrix:
    """How code reads a row of a matrix: 64 bytes at a time, which become so many vectors of 32 weights."""

    read: Callable[[Any, Any], list[Any]]
    vectors: int = 1


def read_pairs(builder: Any, address: Any) -> list[Any]:
    return [lanes.load(builder, address, PAIRS, 2)]


SHORT = Matrix(read_pairs)


def tile_kernel(tall: int, rows: int, matrix: Matrix = SHORT) -> Any:
    """Products of `tall` rows of the matrix with `rows` inputs.

    Meanwhile what comes next is asked for, into the cache behind the nearest one: a core does not guess what follows
    such short rows. With two threads of an AMD EPYC one row takes 0.9 and eight rows 0.75 of the time without.

    The result takes the address of the first weight, the bytes to the next row; the address of the first input, the
    bytes to the next one; how many times 64 bytes a row has; from where on to ask, and for how many bytes in each of
    these steps; the addresses of what the first row's products are multiplied with, and of what is added to them, or 0;
    the address of the first product, and the bytes to the next input's.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        context: Any, weights: Any, apart: Any, inputs: Any, inputs_apart: Any, steps: Any, asked: Any, pace: Any,
        scales: Any, bias: Any, to: Any, to_apart: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            weights, apart, inputs, inputs_apart, steps, asked, pace, scales, bias, to, to_apart = arguments
            nothing = lanes.same(REALS, 0.0)
            sums = [[cgutils.alloca_once_value(b, nothing) for _ in range(tall)] for _ in range(rows)]
            starts = [b.add(inputs, b.mul(inputs_apart, I64(row))) for row in range(rows)]
            firsts = [b.add(weights, b.mul(apart, I64(i))) for i in range(tall)]
            between = b.sdiv(pace, I64(tall))
            with cgutils.for_range(b, steps) as loop:
                here = b.mul(loop.index, I64(BYTES))
                there = [b.add(b.mul(here, I64(matrix.vectors)), I64(BYTES * i)) for i in range(matrix.vectors)]
                x = [[lanes.load(b, b.add(start, place), PAIRS, 2) for place in there] for start in starts]
                next_ = b.add(asked, b.mul(loop.index, pace))
                for i, first in enumerate(firsts):
                    lanes.ask(b, b.add(next_, b.mul(between, I64(i))), nearest=False)
                    for part, weight in enumerate(matrix.read(b, b.add(first, here))):
                        for row in range(rows):
                            b.store(add_pairs(b, b.load(sums[row][i]), weight, x[row][part]), sums[row][i])
            totals = [cgutils.alloca_once_value(b, lane_sums(b, [b.load(each) for each in mine])) for mine in sums]
            finish(b, totals, tall, scales, bias)
            for row, total in enumerate(totals):
                short = b.fptrunc(b.load(total), ir.VectorType(Bfloat(), tall))
                lanes.store(b, short, b.add(to, b.mul(to_apart, I64(row))), 2)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 11), generate

    return tile


def finish(builder: Any, totals: list[Any], tall: int, scales: Any, bias: Any) -> None:
    """Multiply sums of `tall` rows with their fp32 scales, and add their bf16 biases, where there are any."""
    b, zero = builder, I64(0)
    with b.if_then(b.icmp_signed("!=", scales, zero)):
        scale = lanes.load(b, scales, ir.VectorType(F32, tall))
        for total in totals:
            b.store(b.fmul(b.load(total), scale), total)
    with b.if_then(b.icmp_signed("!=", bias, zero)):
        more = b.fpext(lanes.load(b, bias, ir.VectorType(Bfloat(), tall), 2), ir.VectorType(F32, tall))
        for total in totals:
            b.store(b.fadd(b.load(total), more), total)


tall_one, tall_two, tall_four, tall_six = (tile_kernel(TALL, rows) for rows in (1, 2, 4, 6))
flat_one, flat_two, flat_four, flat_six = (tile_kernel(1, rows) for rows in (1, 2, 4, 6))


@compiled
def multiply_tile(
    tall: int, weights: int, steps: int, inputs: int, rows: int, asked: int, ask: int, scales: int, bias: int, to: int,
    to_apart: int,
) -> None:  # fmt: skip
    """Products of one or TALL rows of bf16 weights, one after the other, with any number of inputs.

    Args:
        ask: bytes from `asked` on to ask for, spread over the work; the others are a tile kernel's
    """
    apart, row = BYTES * steps, 0
    pace = ask // (steps * ((rows + 5) // 6))
    while row < rows:
        x, place, left = inputs + row * apart, to + row * to_apart, rows - row
        if left >= 6 and left != 8:
            if tall == TALL:
                tall_six(weights, apart, x, apart, steps, asked, pace, scales, bias, place, to_apart)
            else:
                flat_six(weights, apart, x, apart, steps, asked, pace, scales, bias, place, to_apart)
            row += 6
        elif left >= 4:
            if tall == TALL:
                tall_four(weights, apart, x, apart, steps, asked, pace, scales, bias, place, to_apart)
            else:
                flat_four(weights, apart, x, apart, steps, asked, pace, scales, bias, place, to_apart)
            row += 4
        elif left >= 2:
            if tall == TALL:
                tall_two(weights, apart, x, apart, steps, asked, pace, scales, bias, place, to_apart)
            else:
                flat_two(weights, apart, x, apart, steps, asked, pace, scales, bias, place, to_apart)
            row += 2
        else:
            if tall == TALL:
                tall_one(weights, apart, x, apart, steps, asked, pace, scales, bias, place, to_apart)
            else:
                flat_one(weights, apart, x, apart, steps, asked, pace, scales, bias, place, to_apart)
            row += 1
        asked += pace * steps


def multiply(arguments: int, first: int, last: int) -> None:
    """Products of inputs with rows first, …, last - 1 of the matrix.

    The arguments are addresses and numbers: of the weights, bf16 (outputs, channels); outputs; channels; of the inputs,
    bf16 (rows, channels); rows; of the products, bf16 (rows, outputs); of what is added to them, bf16 (outputs,), or 0.
    """
    weights, to_apart, channels = team.read(arguments), 2 * team.read(arguments + 8), team.read(arguments + 16)
    inputs, rows = team.read(arguments + 24), team.read(arguments + 32)
    products, bias = team.read(arguments + 40), team.read(arguments + 48)
    apart, output = 2 * channels, first
    while output < last:
        tall = TALL if rows > 1 and output + TALL <= last else 1
        at, ask = weights + output * apart, tall * apart
        asked = at + (ask if rows > 1 else AHEAD)
        more = bias + 2 * output if bias else 0
        to = products + 2 * output
        multiply_tile(tall, at, channels // WIDTH, inputs, rows, asked, ask, 0, more, to, to_apart)
        output += tall


@functools.cache
def multiply_job() -> int:
    """Address of `multiply` as a job; LLVM ends the process where the processor lacks the instructions."""
    return job(multiply)
