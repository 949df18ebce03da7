"""CPU kernels of what a decoder layer does between products, as jobs of a team: normalise, add, gate.

Rows are bf16 or fp32, and every step rounds to their type where transformers' own does. The arguments of a job are
words: addresses, and numbers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache import compiled, job, kernels
from engine.asking_kernels import ask_job
from engine.linear_kernels import multiply
from engine.pairs import multiply_job
from engine.short_kernels import as_short, read_short, write_short

lanes, team, sharing = kernels("lane"), kernels("team"), kernels("sharing")
I64, F32, REALS, LANES = lanes.I64, lanes.F32, lanes.REALS, lanes.LANES


class Numbers:
    """How code that is written with `builder` reads and writes 16 numbers of a type."""

    def __init__(self, builder: Any, width: int) -> None:
        self._builder, self._width = builder, width

    def load(self, address: Any, step: Any) -> Any:
        place = lanes.at(self._builder, address, step, self._width)
        if self._width == 4:
            return lanes.load(self._builder, place, REALS)
        return read_short(self._builder, place, LANES)

    def store(self, value: Any, address: Any, step: Any) -> None:
        place = lanes.at(self._builder, address, step, self._width)
        if self._width == 4:
            lanes.store(self._builder, value, place)
        else:
            write_short(self._builder, value, place)

    def rounded(self, value: Any) -> Any:
        """As if it had been written and read."""
        return value if self._width == 4 else as_short(self._builder, value)


def row_kernels(width: int) -> tuple[Any, Any, Any]:
    """Kernels over 16 * steps numbers of so many bytes that lie at addresses: normalise, add, gate."""

    @intrinsic  # type: ignore[untyped-decorator]
    def normalise(context: Any, x: Any, weight: Any, to: Any, steps: Any, epsilon: Any) -> Any:
        """x over the root of its mean square and epsilon, an fp64's bits, times weight; `to` may be x."""

        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            x, weight, to, steps, epsilon = arguments
            numbers, total = Numbers(b, width), cgutils.alloca_once_value(b, lanes.same(REALS, 0.0))
            b.store(lanes.same(REALS, 0.0), total)
            with cgutils.for_range(b, steps) as loop:
                value = numbers.load(x, loop.index)
                b.store(lanes.plus_product(b, b.load(total), value, value), total)
            squares = lanes.over_lanes(b, "fadd", b.load(total))
            mean = b.fdiv(squares, b.sitofp(b.mul(steps, I64(LANES)), F32))
            mean = b.fadd(mean, b.fptrunc(b.bitcast(epsilon, ir.DoubleType()), F32))
            factor = lanes.spread(b, b.fdiv(F32(1.0), lanes.call(b, "llvm.sqrt.f32", F32, mean)), REALS)
            with cgutils.for_range(b, steps) as loop:
                value = numbers.rounded(b.fmul(numbers.load(x, loop.index), factor))
                numbers.store(b.fmul(numbers.load(weight, loop.index), value), to, loop.index)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def plus(context: Any, one: Any, other: Any, to: Any, steps: Any) -> Any:
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            one, other, to, steps = arguments
            numbers = Numbers(b, width)
            with cgutils.for_range(b, steps) as loop:
                total = b.fadd(numbers.load(one, loop.index), numbers.load(other, loop.index))
                numbers.store(total, to, loop.index)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def gate(context: Any, x: Any, values: Any, to: Any, steps: Any) -> Any:
        """silu(x) times values."""

        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            x, values, to, steps = arguments
            numbers, one = Numbers(b, width), lanes.same(REALS, 1.0)
            with cgutils.for_range(b, steps) as loop:
                value = numbers.load(x, loop.index)
                power = lanes.power_of_two(b, b.fmul(value, lanes.same(REALS, -lanes.LOG2_E)))
                open_ = numbers.rounded(b.fdiv(value, b.fadd(one, power)))
                numbers.store(b.fmul(open_, numbers.load(values, loop.index)), to, loop.index)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), generate

    return normalise, plus, gate


normalise_short, plus_short, gate_short = row_kernels(2)
normalise_wide, plus_wide, gate_wide = row_kernels(4)


def norm_short(arguments: int, first: int, last: int) -> None:
    """Normalise rows first, …, last - 1 of bf16; words: of the rows, weights, result; channels, epsilon's bits."""
    x, weight, to = team.read(arguments), team.read(arguments + 8), team.read(arguments + 16)
    channels, epsilon = team.read(arguments + 24), team.read(arguments + 32)
    for row in range(first, last):
        at = 2 * channels * row
        normalise_short(x + at, weight, to + at, channels // LANES, epsilon)


def norm_wide(arguments: int, first: int, last: int) -> None:
    """The same of fp32."""
    x, weight, to = team.read(arguments), team.read(arguments + 8), team.read(arguments + 16)
    channels, epsilon = team.read(arguments + 24), team.read(arguments + 32)
    for row in range(first, last):
        at = 4 * channels * row
        normalise_wide(x + at, weight, to + at, channels // LANES, epsilon)


@compiled
def three(arguments: int, offset: int) -> tuple[int, int, int]:
    """The addresses in the first three words, so many bytes on."""
    return team.read(arguments) + offset, team.read(arguments + 8) + offset, team.read(arguments + 16) + offset


def add_short(arguments: int, first: int, last: int) -> None:
    """Add 16 numbers and 16 numbers first, …, last - 1 of bf16; words: of both, of the result."""
    one, other, to = three(arguments, 2 * LANES * first)
    plus_short(one, other, to, last - first)


def add_wide(arguments: int, first: int, last: int) -> None:
    """The same of fp32."""
    one, other, to = three(arguments, 4 * LANES * first)
    plus_wide(one, other, to, last - first)


def swish_short(arguments: int, first: int, last: int) -> None:
    """silu of 16 numbers, times 16 numbers, first, …, last - 1 of bf16; words: of both, of the result."""
    x, values, to = three(arguments, 2 * LANES * first)
    gate_short(x, values, to, last - first)


def swish_wide(arguments: int, first: int, last: int) -> None:
    """The same of fp32."""
    x, values, to = three(arguments, 4 * LANES * first)
    gate_wide(x, values, to, last - first)


unpack_wide, unpack_bytes = (
    sharing.unpacker(sharing.array(kind, 2), *[sharing.WHOLE] * 5) for kind in (np.float32, np.int8)
)


@compiled
def finish(products: int, outputs: int, rows: int, scales: int, bias: int, first: int, last: int) -> None:
    """Multiply products with scales and add biases, where there are any: fp32 all."""
    for row in range(rows):
        for output in range(first, last):
            place = products + 4 * (row * outputs + output)
            if scales:
                lanes.multiply_by(place, scales + 4 * output)
            if bias:
                lanes.add_to(place, bias + 4 * output)


def multiply_wide(arguments: int, first: int, last: int) -> None:
    """As `pair_kernels.multiply`, with fp32 for bf16."""
    weights, inputs, rows, products, bias, scales = unpack_wide(arguments)
    outputs, channels = weights.shape
    multiply(weights, inputs, 4 * channels, products + 4 * first, 4 * outputs, rows, first, last)
    finish(products, outputs, rows, scales, bias, first, last)


def multiply_bytes(arguments: int, first: int, last: int) -> None:
    """As `byte_kernels.multiply`, with fp32 for bf16."""
    weights, inputs, rows, products, bias, scales = unpack_bytes(arguments)
    outputs, channels = weights.shape
    multiply(weights, inputs, 4 * channels, products + 4 * first, 4 * outputs, rows, first, last)
    finish(products, outputs, rows, scales, bias, first, last)


# -- as jobs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Jobs:
    """Addresses of the kernels for one type of numbers; `ask` asks for what `multiply` reads first."""

    norm: int
    add: int
    swish: int
    multiply: int
    ask: int


@functools.cache
def jobs(width: int, weights: torch.dtype) -> Jobs:
    """Those for numbers of so many bytes, and weights of that type or int8; no others are compiled."""
    if width == 2:
        return Jobs(job(norm_short), job(add_short), job(swish_short), multiply_job(weights), ask_job(weights))
    product = multiply_bytes if weights == torch.int8 else multiply_wide
    return Jobs(job(norm_wide), job(add_wide), job(swish_wide), job(product), ask_job(weights))
