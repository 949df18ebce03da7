"""A CPU kernel that multiplies a few rows with a matrix of bf16 weights by instructions for that (AVX512-BF16).

One instruction takes 32 weights and 32 inputs as they are, adds the products of neighbours, and those to 16 sums. So
arithmetic takes half of what it takes in fp32, and 16 rows take little longer than reading the matrix. Every sum runs
through the channels in one order, however many rows are computed together: a row's result does not depend on others.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache import job, kernels
from engine.linear_kernels import lane_sums

lanes, team = kernels("lane"), kernels("team")
I32, I64, F32, REALS, LANES = lanes.I32, lanes.I64, lanes.F32, lanes.REALS, lanes.LANES
WIDTH = 32
"""Weights of one instruction."""
TALL = 4
"""Rows of the matrix that are read together."""


class Bfloat(ir.types._BaseFloatType):  # type: ignore[misc]
    """LLVM's type, which llvmlite lacks."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"


Bfloat._create_instance()
PAIRS = ir.VectorType(Bfloat(), WIDTH)


def add_pairs(builder: Any, sums: Any, weights: Any, inputs: Any) -> Any:
    kind = ir.FunctionType(REALS, [REALS, PAIRS, PAIRS])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(function, [sums, weights, inputs])


def tile_kernel(tall: int, rows: int) -> Any:
    """Products of `tall` rows of the matrix with `rows` inputs.

    Meanwhile the next tile is asked for, into the cache behind the nearest one: a core does not guess what follows
    such short rows. With two threads of an AMD EPYC one row takes 0.9 and eight rows 0.75 of the time without.

    The result takes the address of the first weight, the bytes to the next row; the address of the first input, the
    bytes to the next one; how many times 32 channels; the address of what is added to the first row's products, or 0;
    the address of the first product, and the bytes to the next input's.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        context: Any, weights: Any, apart: Any, inputs: Any, inputs_apart: Any, steps: Any, bias: Any, to: Any,
        to_apart: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            weights, apart, inputs, inputs_apart, steps, bias, to, to_apart = arguments
            nothing = lanes.same(REALS, 0.0)
            sums = [[cgutils.alloca_once_value(b, nothing) for _ in range(tall)] for _ in range(rows)]
            starts = [b.add(inputs, b.mul(inputs_apart, I64(row))) for row in range(rows)]
            firsts = [b.add(weights, b.mul(apart, I64(i))) for i in range(tall)]
            ahead = b.mul(apart, I64(tall))
            with cgutils.for_range(b, steps) as loop:
                here = b.shl(loop.index, I64(6))
                x = [lanes.load(b, b.add(start, here), PAIRS, 2) for start in starts]
                for i, first in enumerate(firsts):
                    lanes.ask(b, b.add(first, b.add(here, ahead)), nearest=False)
                    weight = lanes.load(b, b.add(first, here), PAIRS, 2)
                    for row in range(rows):
                        b.store(add_pairs(b, b.load(sums[row][i]), weight, x[row]), sums[row][i])
            totals = [cgutils.alloca_once_value(b, lane_sums(b, [b.load(each) for each in mine])) for mine in sums]
            short = ir.VectorType(Bfloat(), tall)
            with b.if_then(b.icmp_signed("!=", bias, I64(0))):
                more = b.fpext(lanes.load(b, bias, short, 2), ir.VectorType(F32, tall))
                for total in totals:
                    b.store(b.fadd(b.load(total), more), total)
            for row, total in enumerate(totals):
                lanes.store(b, b.fptrunc(b.load(total), short), b.add(to, b.mul(to_apart, I64(row))), 2)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), generate

    return tile


tall_one, tall_two, tall_four, tall_six = (tile_kernel(TALL, rows) for rows in (1, 2, 4, 6))
flat_one, flat_two, flat_four, flat_six = (tile_kernel(1, rows) for rows in (1, 2, 4, 6))


def multiply(arguments: int, first: int, last: int) -> None:
    """Products of inputs with rows first, …, last - 1 of the matrix.

    The arguments are addresses and numbers: of the weights, bf16 (outputs, channels); outputs; channels; of the inputs,
    bf16 (rows, channels); rows; of the products, bf16 (rows, outputs); of what is added to them, bf16 (outputs,), or 0.
    """
    weights, to_apart, channels = team.read(arguments), 2 * team.read(arguments + 8), team.read(arguments + 16)
    inputs, rows = team.read(arguments + 24), team.read(arguments + 32)
    products, bias = team.read(arguments + 40), team.read(arguments + 48)
    apart, steps = 2 * channels, channels // 32
    output = first
    while output < last:
        tall = 4 if output + 4 <= last else 1
        at, row = weights + output * apart, 0
        more = bias + 2 * output if bias else 0
        while row < rows:
            x, to = inputs + row * apart, products + row * to_apart + 2 * output
            left = rows - row
            if left >= 6 and left != 8:
                if tall == 4:
                    tall_six(at, apart, x, apart, steps, more, to, to_apart)
                else:
                    flat_six(at, apart, x, apart, steps, more, to, to_apart)
                row += 6
            elif left >= 4:
                if tall == 4:
                    tall_four(at, apart, x, apart, steps, more, to, to_apart)
                else:
                    flat_four(at, apart, x, apart, steps, more, to, to_apart)
                row += 4
            elif left >= 2:
                if tall == 4:
                    tall_two(at, apart, x, apart, steps, more, to, to_apart)
                else:
                    flat_two(at, apart, x, apart, steps, more, to, to_apart)
                row += 2
            else:
                if tall == 4:
                    tall_one(at, apart, x, apart, steps, more, to, to_apart)
                else:
                    flat_one(at, apart, x, apart, steps, more, to, to_apart)
                row += 1
        output += tall


@functools.cache
def multiply_job() -> int:
    """Address of `multiply` as a job; LLVM ends the process where the processor lacks the instructions."""
    return job(multiply)
