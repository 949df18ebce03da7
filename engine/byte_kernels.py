"""CPU kernels that multiply a few rows of bf16 with a matrix of 8-bit weights, by instructions for bf16.

A whole number up to 127 is the same in bf16, so a weight becomes one by looking up both its bytes by its size, and no
input is rounded: the products are those of `pair_kernels` with such weights, times a scale for each row. One or two
inputs are multiplied on the way. For more a tile of the matrix is widened once, into what the near caches hold.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache import compiled, job, kernels
from engine.pair_kernels import BYTES, PAIRS, TALL, Matrix, multiply_tile, tile_kernel

lanes, team = kernels("lane"), kernels("team")
I32, I64 = lanes.I32, lanes.I64
WEIGHTS = ir.VectorType(lanes.I8, BYTES)
ORDERS = ir.VectorType(I32, BYTES)
HALVES = np.arange(128, dtype=np.float32).view(np.uint32) >> 16
"""The numbers up to 127 as bf16."""
UPPER, LOWER = [int(half) >> 8 for half in HALVES], [int(half) & 255 for half in HALVES]
SIGN = 0x80
ON_THE_WAY = 2
"""Up to so many inputs are multiplied without widening a tile before."""
AHEAD = 8192
"""Bytes, at least: so far before it is needed a tile is asked for."""


def looked_up(builder: Any, table: list[int], places: Any) -> Any:
    """Of each byte that of a table of 128 at its lower 7 bits."""
    kind = ir.FunctionType(WEIGHTS, [WEIGHTS] * 3)
    look = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpermi2var.qi.512")
    near, far = (ir.Constant(WEIGHTS, half) for half in (table[:64], table[64:]))
    return builder.call(look, [near, places, far])


def read_bytes(builder: Any, address: Any) -> list[Any]:
    """64 weights as two vectors of 32 of bf16."""
    b, bit = builder, ir.IntType(1)
    weights = lanes.load(b, address, WEIGHTS, 1)
    kind = ir.FunctionType(WEIGHTS, [WEIGHTS, bit])
    sizes = b.call(cgutils.get_or_insert_function(b.module, kind, f"llvm.abs.v{BYTES}i8"), [weights, bit(0)])
    lower, upper = looked_up(b, LOWER, sizes), looked_up(b, UPPER, sizes)
    upper = b.or_(upper, b.and_(weights, lanes.same(WEIGHTS, SIGN)))
    woven = [[place for i in range(start, start + 32) for place in (i, BYTES + i)] for start in (0, 32)]
    return [b.bitcast(b.shuffle_vector(lower, upper, ir.Constant(ORDERS, order)), PAIRS) for order in woven]


SMALL = Matrix(read_bytes, 2)
tall_one, tall_two = (tile_kernel(TALL, rows, SMALL) for rows in (1, 2))
flat_one, flat_two = (tile_kernel(1, rows, SMALL) for rows in (1, 2))


@intrinsic  # type: ignore[untyped-decorator]
def widen(context: Any, weights: Any, to: Any, steps: Any) -> Any:
    """Write 64 * steps weights as bf16."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        weights, to, steps = arguments
        with cgutils.for_range(b, steps) as loop:
            here = b.mul(loop.index, I64(BYTES))
            for half, numbers in enumerate(read_bytes(b, b.add(weights, here))):
                lanes.store(b, numbers, b.add(to, b.add(b.mul(here, I64(2)), I64(BYTES * half))), 2)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), generate


@compiled
def multiply_on_the_way(
    tall: int, weights: int, steps: int, inputs: int, rows: int, asked: int, scales: int, bias: int, to: int,
    to_apart: int,
) -> None:  # fmt: skip
    """As `pair_kernels.multiply_tile` for 8-bit weights and one or two inputs."""
    apart, wide, pace = BYTES * steps, 2 * BYTES * steps, BYTES * tall
    if tall == TALL:
        if rows == 1:
            tall_one(weights, apart, inputs, wide, steps, asked, pace, scales, bias, to, to_apart)
        else:
            tall_two(weights, apart, inputs, wide, steps, asked, pace, scales, bias, to, to_apart)
    elif rows == 1:
        flat_one(weights, apart, inputs, wide, steps, asked, pace, scales, bias, to, to_apart)
    else:
        flat_two(weights, apart, inputs, wide, steps, asked, pace, scales, bias, to, to_apart)


def multiply(arguments: int, first: int, last: int) -> None:
    """Products of inputs with rows first, …, last - 1 of the matrix.

    The arguments are those of `pair_kernels.multiply`, with weights int8, whose channels are a multiple of 64, and
    behind them the address of their scales, fp32 (outputs,).
    """
    weights, to_apart, channels = team.read(arguments), 2 * team.read(arguments + 8), team.read(arguments + 16)
    inputs, rows = team.read(arguments + 24), team.read(arguments + 32)
    products, bias, scales = team.read(arguments + 40), team.read(arguments + 48), team.read(arguments + 56)
    room = np.empty(TALL * channels + BYTES, np.int16)
    wide = (lanes.address(room) + BYTES - 1) // BYTES * BYTES
    steps, output = channels // BYTES, first
    while output < last:
        tall = TALL if output + TALL <= last else 1
        at, taken = weights + output * channels, tall * channels
        asked = at + (AHEAD + taken - 1) // taken * taken
        more, scale = bias + 2 * output if bias else 0, scales + 4 * output
        to = products + 2 * output
        if rows <= ON_THE_WAY:
            multiply_on_the_way(tall, at, steps, inputs, rows, asked, scale, more, to, to_apart)
        else:
            widen(at, wide, tall * steps)
            multiply_tile(tall, wide, 2 * steps, inputs, rows, asked, taken, scale, more, to, to_apart)
        output += tall


@functools.cache
def multiply_job() -> int:
    """Address of `multiply` as a job; LLVM ends the process where the processor lacks the instructions."""
    return job(multiply)
