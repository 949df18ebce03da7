"""What CPU kernels are made of: loads and loops over 16 numbers at a time, written for LLVM itself.

Numba makes no vectors of a maximum over a loop, and 64-bit numbers of every sum of integers; and an array from Python
costs more to hand over than a short loop takes. So these take addresses. Arrays that they walk through have room for a
multiple of 16 numbers. Compiled by Numba when first called.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
I16, I32, I64, F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
REALS, WHOLES, SHORTS = (ir.VectorType(kind, LANES) for kind in (F32, I32, I16))
FAST = ("fast",)
NOTHING = -1e30
"""Logarithm of a mass that is none."""
LOG2_E = 1.4426950408889634
POWER = (1.0, 0.6931471806, 0.240226507, 0.05550410866, 0.009618129108, 0.001333355815, 0.0001540353039)
"""Taylor's coefficients of 2**x, which is right to 2e-7 for x in [-0.5, 0.5]."""
LEAST = -64.0
"""Power of two that counts as nothing beside 1. Far smaller ones become numbers that a CPU is slow with (denormal) when
they are multiplied again."""


def same(kind: Any, value: Any) -> Any:
    """A constant in all lanes."""
    return ir.Constant(kind, [value] * kind.count)


def load(builder: Any, address: Any, kind: Any, align: int = 4) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


def store(builder: Any, value: Any, address: Any, align: int = 4) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = align


def spread(builder: Any, value: Any, kind: Any) -> Any:
    """One value in all lanes."""
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, value, I32(0))
    return builder.shuffle_vector(first, nothing, same(WHOLES, 0))


def call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call one of LLVM's own functions."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments, fastmath=FAST)


def larger(builder: Any, one: Any, other: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", one, other), one, other)


def at(builder: Any, address: Any, step: Any, width: int = 4) -> Any:
    """Where 16 numbers of so many bytes lie, a number of steps on."""
    return builder.add(address, builder.mul(step, I64(width * LANES)))


def ask(builder: Any, address: Any) -> None:
    """Ask memory for what lies at an address, which need not exist."""
    pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, pointer), I32(0), I32(3), I32(1)])  # to read, to keep, data


@intrinsic  # type: ignore[untyped-decorator]
def address(context: Any, array: Any) -> Any:
    """Of an array's first number, as a signed integer: Numba's own is unsigned, and adding to that makes a float."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        made = context.make_array(signature.args[0])(context, b, arguments[0])
        return b.ptrtoint(made.data, I64)

    return types.intp(array), generate


@intrinsic  # type: ignore[untyped-decorator]
def highest(context: Any, x: Any, steps: Any) -> Any:
    """The largest of 16 * steps numbers, at least NOTHING."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, steps = arguments
        best = cgutils.alloca_once_value(b, same(REALS, NOTHING))
        with cgutils.for_range(b, steps) as loop:
            b.store(larger(b, load(b, at(b, x, loop.index), REALS), b.load(best)), best)
        return call(b, f"llvm.vector.reduce.fmax.v{LANES}f32", F32, b.load(best))

    return types.float32(types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def exponentials(context: Any, x: Any, shift: Any, to: Any, steps: Any) -> Any:
    """exp(x - shift), at least 2**LEAST, of 16 * steps numbers, and their sum."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, shift, to, steps = arguments
        total, shift = cgutils.alloca_once_value(b, same(REALS, 0.0)), spread(b, shift, REALS)
        with cgutils.for_range(b, steps) as loop:
            power = b.fmul(b.fsub(load(b, at(b, x, loop.index), REALS), shift, FAST), same(REALS, LOG2_E), FAST)
            power = larger(b, power, same(REALS, LEAST))
            whole = call(b, f"llvm.rint.v{LANES}f32", REALS, power)
            part, value = b.fsub(power, whole), same(REALS, POWER[-1])
            for coefficient in POWER[-2::-1]:
                value = b.fadd(b.fmul(value, part, FAST), same(REALS, coefficient), FAST)
            exponent = b.shl(b.fptosi(whole, WHOLES), same(WHOLES, 23))
            value = b.bitcast(b.add(b.bitcast(value, WHOLES), exponent), REALS)
            store(b, value, at(b, to, loop.index))
            b.store(b.fadd(b.load(total), value, FAST), total)
        return call(b, f"llvm.vector.reduce.fadd.v{LANES}f32", F32, F32(0.0), b.load(total))

    return types.float32(types.intp, types.float32, types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def scale(context: Any, x: Any, factors: Any, to: Any, steps: Any) -> Any:
    """Write 16 * steps numbers, each times a factor of its own; returns the largest size among them."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, factors, to, steps = arguments
        best = cgutils.alloca_once_value(b, same(REALS, 0.0))
        with cgutils.for_range(b, steps) as loop:
            value = b.fmul(load(b, at(b, x, loop.index), REALS), load(b, at(b, factors, loop.index), REALS), FAST)
            store(b, value, at(b, to, loop.index))
            b.store(larger(b, call(b, f"llvm.fabs.v{LANES}f32", REALS, value), b.load(best)), best)
        return call(b, f"llvm.vector.reduce.fmax.v{LANES}f32", F32, b.load(best))

    return types.float32(types.intp, types.intp, types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def shorten(context: Any, x: Any, factor: Any, to: Any, steps: Any) -> Any:
    """Write 16 * steps numbers times a factor as the nearest numbers of 16 bits, which they must fit into."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, factor, to, steps = arguments
        factor = spread(b, factor, REALS)
        with cgutils.for_range(b, steps) as loop:
            value = b.fmul(load(b, at(b, x, loop.index), REALS), factor, FAST)
            whole = b.fptosi(call(b, f"llvm.rint.v{LANES}f32", REALS, value), WHOLES)
            store(b, b.trunc(whole, SHORTS), at(b, to, loop.index, 2), 2)
        return context.get_dummy_value()

    return types.void(types.intp, types.float32, types.intp, types.intp), generate
