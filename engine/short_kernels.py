"""How kernels read and write bf16, on processors with instructions for it and on all others.

bf16 is the upper half of fp32. Where the instructions are missing LLVM calls a function for each number that it
rounds, so there it is done with whole numbers, 16 at a time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from cache import kernels

lanes = kernels("lane")
I16, I32, F32 = lanes.I16, lanes.I32, lanes.F32
BY_INSTRUCTIONS = lanes.knows("avx512bf16")
UPPER = 0xFFFF0000
"""Of a word its upper half."""


class Bfloat(ir.types._BaseFloatType):  # type: ignore[misc]
    """LLVM's type, which llvmlite lacks."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"


Bfloat._create_instance()


def read_short(builder: Any, address: Any, count: int) -> Any:
    """So many numbers of bf16 as fp32."""
    b, wide = builder, ir.VectorType(I32, count)
    if BY_INSTRUCTIONS:
        short = lanes.load(b, address, ir.VectorType(Bfloat(), count), 2)
        return b.fpext(short, ir.VectorType(F32, count))
    halves = b.zext(lanes.load(b, address, ir.VectorType(I16, count), 2), wide)
    return b.bitcast(b.shl(halves, lanes.same(wide, 16)), ir.VectorType(F32, count))


def write_short(builder: Any, value: Any, address: Any) -> None:
    """Write fp32 numbers as bf16."""
    b, count = builder, value.type.count
    if BY_INSTRUCTIONS:
        lanes.store(b, b.fptrunc(value, ir.VectorType(Bfloat(), count)), address, 2)
    else:
        upper = b.lshr(nearest(b, value), lanes.same(ir.VectorType(I32, count), 16))
        lanes.store(b, b.trunc(upper, ir.VectorType(I16, count)), address, 2)


def as_short(builder: Any, value: Any) -> Any:
    """fp32 numbers as if they had been written as bf16 and read."""
    b, count = builder, value.type.count
    if BY_INSTRUCTIONS:
        return b.fpext(b.fptrunc(value, ir.VectorType(Bfloat(), count)), value.type)
    wide = ir.VectorType(I32, count)
    return b.bitcast(b.and_(nearest(b, value), lanes.same(wide, UPPER)), value.type)


def half_of(builder: Any, words: Any, upper: bool) -> Any:
    """Of each word the upper half, where it is, or the lower one, moved there."""
    kind = words.type
    return builder.and_(words, lanes.same(kind, UPPER)) if upper else builder.shl(words, lanes.same(kind, 16))


def nearest(builder: Any, value: Any) -> Any:
    """Bits of fp32 numbers whose upper halves are the nearest ones of bf16, and of two the even one."""
    b, wide = builder, ir.VectorType(I32, value.type.count)
    whole = b.bitcast(value, wide)
    odd = b.and_(b.lshr(whole, lanes.same(wide, 16)), lanes.same(wide, 1))
    return b.add(whole, b.add(odd, lanes.same(wide, 0x7FFF)))
