"""CPU kernels for what blocks weigh: masses beside a whole power of two that need not be known before, in one pass.

A softmax asks for its largest number first, which is another walk. But a mass beside another power of two is the same
number with another exponent: 2**x is 2**whole times 2**part, and only `whole` changes. So blocks that come later may be
told beside another power than those before, and what comes out at last does not depend on where it changed.
Written for LLVM itself, as `cache.lane_kernels`. Compiled by Numba when first called.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache.lane_kernels import (
    CHUNK,
    F32,
    I64,
    LANES,
    REALS,
    WHOLES,
    at,
    call,
    larger,
    load,
    over_lanes,
    polynomial,
    same,
    spread,
    store,
    times_power,
)
from cache.sections import PAIRS

LOWEST = -100.0
"""Power of two, beside the reference, below which masses are not told apart."""
NEAR_POWER = (0.999999261, 0.693121815, 0.240247449, 0.0559178602, 0.00957010059)
"""Coefficients of 2**x, right to 2.6e-6 of it for x in [-0.5, 0.5]: the least that a polynomial of this degree can."""


def neighbours(builder: Any, one: Any, other: Any) -> Any:
    """Sums of neighbours: 16 of twice as many numbers."""
    even, odd = (
        builder.shuffle_vector(one, other, ir.Constant(WHOLES, list(range(start, 2 * LANES, 2)))) for start in (0, 1)
    )
    return builder.fadd(even, odd)


def moved_power(builder: Any, power: Any, reference: Any) -> Any:
    """2**(power - reference) in each lane, at least about 2**LOWEST: only its exponent depends on the reference."""
    whole = call(builder, f"llvm.rint.v{LANES}f32", REALS, power)
    beside = larger(builder, builder.fsub(whole, reference), same(REALS, LOWEST))
    return times_power(builder, polynomial(builder, builder.fsub(power, whole), NEAR_POWER), beside)


@intrinsic  # type: ignore[untyped-decorator]
def add_shares(
    context: Any, masses: Any, apart: Any, groups: Any, factors: Any, factors_apart: Any, floors: Any, to: Any,
    steps: Any,
) -> Any:  # fmt: skip
    """Sums, over query heads, of the masses of 64 * steps pairs times a factor, each at least a floor.

    Takes addresses, and strides in bytes: of the first query head's masses, the stride to the next one's and how many
    there are; of its factors, one for each step, and the stride; of the floors, one for each query head; and of where
    64 * steps sums go.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        masses, apart, groups, factors, factors_apart, floors, to, steps = arguments
        sums = [cgutils.alloca_once(b, REALS) for _ in range(CHUNK // LANES)]
        with cgutils.for_range(b, steps) as loop:
            places = [b.add(b.mul(loop.index, I64(len(sums))), I64(part)) for part in range(len(sums))]
            for each in sums:
                b.store(same(REALS, 0.0), each)
            with cgutils.for_range(b, groups) as inner:
                mine, at_floor = b.add(masses, b.mul(inner.index, apart)), b.add(floors, b.mul(inner.index, I64(4)))
                at_factor = b.add(b.add(factors, b.mul(inner.index, factors_apart)), b.mul(loop.index, I64(4)))
                factor, floor = (spread(b, load(b, place, F32), REALS) for place in (at_factor, at_floor))
                for each, place in zip(sums, places, strict=True):
                    share = b.fmul(load(b, at(b, mine, place), REALS), factor)
                    b.store(b.fadd(b.load(each), larger(b, share, floor)), each)
            for each, place in zip(sums, places, strict=True):
                store(b, b.load(each), at(b, to, place))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 8), generate


@intrinsic  # type: ignore[untyped-decorator]
def pool_sections(context: Any, masses: Any, factors: Any, least: Any, to: Any, steps: Any) -> Any:
    """Of the masses of 64 * steps pairs, each 64 times a factor of theirs, the sums by sections, and the sum of all.

    Takes addresses. Of a section that has less than the least nothing is left.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        masses, factors, least, to, steps = arguments
        total, least = cgutils.alloca_once_value(b, same(REALS, 0.0)), spread(b, least, REALS)
        with cgutils.for_range(b, steps) as loop:
            first = b.mul(loop.index, I64(PAIRS))
            four = [load(b, at(b, masses, b.add(first, I64(part))), REALS) for part in range(PAIRS)]
            value = neighbours(b, neighbours(b, *four[:2]), neighbours(b, *four[2:]))
            factor = load(b, b.add(factors, b.mul(loop.index, I64(4))), F32)
            value = b.fmul(value, spread(b, factor, REALS))
            value = b.select(b.fcmp_ordered("<", value, least), same(REALS, 0.0), value)
            store(b, value, at(b, to, loop.index))
            b.store(b.fadd(b.load(total), value), total)
        return over_lanes(b, "fadd", b.load(total))

    return types.float32(types.intp, types.intp, types.float32, types.intp, types.intp), generate
