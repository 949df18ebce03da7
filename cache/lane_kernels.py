"""What CPU kernels are made of: loads and loops over 16 numbers at a time, written for LLVM itself.

Numba makes no vectors of a maximum over a loop, and 64-bit numbers of every sum of integers; and an array from Python
costs more to hand over than a short loop takes. So these take addresses. Arrays that they walk through have room for a
multiple of 16 numbers. Compiled by Numba when first called.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
REALS, WHOLES, SMALL = (ir.VectorType(kind, LANES) for kind in (F32, I32, I8))
NUMBERS, PAIRS = ir.VectorType(I16, 2 * LANES), ir.VectorType(I32, 2 * LANES)
FUSED = ("contract",)
"""Of a product and of the sum that takes it (`plus_product`): they may be one instruction, which rounds once. Nothing
else may change: every copy that a compiler makes of a kernel, for other loops or in another process, has to give the
same last bit."""
IN_ANY_ORDER = ("reassoc", "nnan", "nsz")
"""Of a sum, or the largest, over the lanes of a vector, which is then found by halves."""
NOTHING = -1e30
"""Logarithm of a mass that is none."""
LINE = 64
"""Bytes that memory gives at once."""
LOG2_E = 1.4426950408889634
POWER = (1.0, 0.6931471806, 0.240226507, 0.05550410866, 0.009618129108, 0.001333355815, 0.0001540353039)
"""Taylor's coefficients of 2**x, which is right to 2e-7 for x in [-0.5, 0.5]."""
LEAST = -64.0
"""Power of two that counts as nothing beside 1. Far smaller ones become numbers that a CPU is slow with (denormal) when
they are multiplied again."""
MOST = 126.0
"""Power of two beyond which there is none in fp32."""


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


def call(builder: Any, name: str, result: Any, *arguments: Any, flags: tuple[str, ...] = ()) -> Any:
    """Call one of LLVM's own functions."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments, fastmath=flags)


def over_lanes(builder: Any, what: str, x: Any) -> Any:
    """One number of 16, by LLVM's name for it: `fmax`, `fmin` or `fadd`."""
    start = [F32(0.0)] if what == "fadd" else []
    return call(builder, f"llvm.vector.reduce.{what}.v{LANES}f32", F32, *start, x, flags=IN_ANY_ORDER)


def add_neighbours(builder: Any, sums: Any, left: Any, right: Any) -> Any:
    """To each lane of sums, the products of its two neighbours, of 16 bits, in left and right (`pmaddwd`)."""
    both = builder.mul(builder.sext(left, PAIRS), builder.sext(right, PAIRS))
    nothing = ir.Constant(PAIRS, ir.Undefined)
    even, odd = (
        builder.shuffle_vector(both, nothing, ir.Constant(WHOLES, list(range(start, 2 * LANES, 2)))) for start in (0, 1)
    )
    return builder.add(sums, builder.add(even, odd))


def knows(feature: str) -> bool:
    """Whether kernels may use what not every processor has; those for another one than this may not."""
    return (
        config.CPU_NAME is None and config.CPU_FEATURES is None and binding.get_host_cpu_features().get(feature, False)
    )


def plus_product(builder: Any, total: Any, one: Any, other: Any) -> Any:
    """total + one * other, by one instruction where the processor has it."""
    return builder.fadd(total, builder.fmul(one, other, flags=FUSED), flags=FUSED)


def larger(builder: Any, one: Any, other: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", one, other), one, other)


def at(builder: Any, address: Any, step: Any, width: int = 4) -> Any:
    """Where 16 numbers of so many bytes lie, a number of steps on."""
    return builder.add(address, builder.mul(step, I64(width * LANES)))


def ask(builder: Any, address: Any, nearest: bool = True) -> None:
    """Ask memory for what lies at an address, which need not exist, into the nearest cache or the one behind it."""
    pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    keep = I32(3 if nearest else 2)
    builder.call(function, [builder.inttoptr(address, pointer), I32(0), keep, I32(1)])  # to read, data


def prefetcher(nearest: bool) -> Any:
    """A kernel that asks for so many bytes from an address on: waiting for what lies anywhere takes longer than its
    work. Into the nearest cache or the one behind it, which bears more such wishes at once."""

    @intrinsic  # type: ignore[untyped-decorator]
    def prefetch(context: Any, start: Any, length: Any) -> Any:
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            start, length = arguments
            with cgutils.for_range(b, b.sdiv(b.add(length, I64(LINE - 1)), I64(LINE))) as loop:
                ask(b, b.add(start, b.mul(loop.index, I64(LINE))), nearest=nearest)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), generate

    return prefetch


prefetch, prefetch_behind = prefetcher(True), prefetcher(False)


@intrinsic  # type: ignore[untyped-decorator]
def address(context: Any, array: Any) -> Any:
    """Of an array's first number, as a signed integer: Numba's own is unsigned, and adding to that makes a float."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        made = context.make_array(signature.args[0])(context, b, arguments[0])
        return b.ptrtoint(made.data, I64)

    return types.intp(array), generate


def power_of_two(builder: Any, power: Any) -> Any:
    """2**power in each lane, of powers that are taken as LEAST at least, and as MOST at most."""
    power = larger(builder, power, same(REALS, LEAST))
    power = builder.select(builder.fcmp_ordered("<", power, same(REALS, MOST)), power, same(REALS, MOST))
    whole = call(builder, f"llvm.rint.v{LANES}f32", REALS, power)
    return times_power(builder, polynomial(builder, builder.fsub(power, whole), POWER), whole)


def polynomial(builder: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    """Its value in each lane; the constant comes first."""
    value = same(REALS, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = plus_product(builder, same(REALS, coefficient), value, x)
    return value


def times_power(builder: Any, value: Any, whole: Any) -> Any:
    """value * 2**whole in each lane, of whole numbers: only the exponent changes."""
    exponent = builder.shl(builder.fptosi(whole, WHOLES), same(WHOLES, 23))
    return builder.bitcast(builder.add(builder.bitcast(value, WHOLES), exponent), REALS)


def changer(operation: str) -> Any:
    """A kernel that changes one fp32 number at an address by that at another: `fadd` or `fmul`, as LLVM calls it."""

    @intrinsic  # type: ignore[untyped-decorator]
    def change(context: Any, to: Any, what: Any) -> Any:
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            to, what = arguments
            store(b, getattr(b, operation)(load(b, to, F32), load(b, what, F32)), to)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), generate

    return change


add_to, multiply_by = changer("fadd"), changer("fmul")


@intrinsic  # type: ignore[untyped-decorator]
def highest(context: Any, x: Any, steps: Any) -> Any:
    """The largest of 16 * steps numbers, at least NOTHING."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, steps = arguments
        best = cgutils.alloca_once_value(b, same(REALS, NOTHING))
        with cgutils.for_range(b, steps) as loop:
            b.store(larger(b, load(b, at(b, x, loop.index), REALS), b.load(best)), best)
        return over_lanes(b, "fmax", b.load(best))

    return types.float32(types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def exponentials(context: Any, x: Any, shift: Any, to: Any, steps: Any) -> Any:
    """exp(x - shift), at least 2**LEAST, of 16 * steps numbers, and their sum."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, shift, to, steps = arguments
        total, shift = cgutils.alloca_once_value(b, same(REALS, 0.0)), spread(b, shift, REALS)
        with cgutils.for_range(b, steps) as loop:
            power = b.fmul(b.fsub(load(b, at(b, x, loop.index), REALS), shift), same(REALS, LOG2_E))
            value = power_of_two(b, power)
            store(b, value, at(b, to, loop.index))
            b.store(b.fadd(b.load(total), value), total)
        return over_lanes(b, "fadd", b.load(total))

    return types.float32(types.intp, types.float32, types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def judge(context: Any, means: Any, variances: Any, reach: Any, log_size: Any, steps: Any) -> Any:
    """Means and variances of 16 * steps blocks become the logarithms of their masses and their scores.

    See `cache.landmarks.moments`.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        means, variances, reach, log_size, steps = arguments
        square = b.fmul(reach, reach)
        shift, square = spread(b, b.fsub(log_size, square), REALS), spread(b, square, REALS)
        reach = spread(b, reach, REALS)
        with cgutils.for_range(b, steps) as loop:
            at_mean, at_variance = at(b, means, loop.index), at(b, variances, loop.index)
            mean, variance = load(b, at_mean, REALS), load(b, at_variance, REALS)
            root, bent = (call(b, f"llvm.sqrt.v{LANES}f32", REALS, x) for x in (variance, b.fadd(variance, square)))
            store(b, plus_product(b, mean, reach, root), at_variance)
            store(b, plus_product(b, b.fadd(mean, shift), reach, bent), at_mean)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32, types.float32, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def number_at(context: Any, place: Any) -> Any:
    """The fp32 number at an address."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return load(b, arguments[0], F32)

    return types.float32(types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def as_whole(context: Any, x: Any) -> Any:
    """The bits of an fp32 number."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return b.bitcast(arguments[0], I32)

    return types.int32(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def as_real(context: Any, x: Any) -> Any:
    """The fp32 number of such bits."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return b.bitcast(arguments[0], F32)

    return types.float32(types.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def copy(context: Any, x: Any, to: Any, steps: Any) -> Any:
    """Copy 16 * steps numbers."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, to, steps = arguments
        with cgutils.for_range(b, steps) as loop:
            store(b, load(b, at(b, x, loop.index), REALS), at(b, to, loop.index))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def dot(context: Any, x: Any, y: Any, steps: Any) -> Any:
    """The product of two vectors of 16 * steps numbers."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, y, steps = arguments
        total = cgutils.alloca_once_value(b, same(REALS, 0.0))
        with cgutils.for_range(b, steps) as loop:
            one, other = (load(b, at(b, place, loop.index), REALS) for place in (x, y))
            b.store(plus_product(b, b.load(total), one, other), total)
        return over_lanes(b, "fadd", b.load(total))

    return types.float32(types.intp, types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def add_times(context: Any, to: Any, x: Any, factor: Any, steps: Any) -> Any:
    """Add 16 * steps numbers, times a factor, to others."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        to, x, factor, steps = arguments
        factor = spread(b, factor, REALS)
        with cgutils.for_range(b, steps) as loop:
            place = at(b, to, loop.index)
            store(b, plus_product(b, load(b, place, REALS), load(b, at(b, x, loop.index), REALS), factor), place)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def lift(context: Any, x: Any, steps: Any) -> Any:
    """Subtract the smallest of 16 * steps numbers from all of them; their sum then."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, steps = arguments
        lowest, total = (cgutils.alloca_once_value(b, same(REALS, start)) for start in (-NOTHING, 0.0))
        with cgutils.for_range(b, steps) as loop:
            value, least = load(b, at(b, x, loop.index), REALS), b.load(lowest)
            b.store(b.select(b.fcmp_ordered("<", value, least), value, least), lowest)
        least = spread(b, over_lanes(b, "fmin", b.load(lowest)), REALS)
        with cgutils.for_range(b, steps) as loop:
            place = at(b, x, loop.index)
            value = b.fsub(load(b, place, REALS), least)
            store(b, value, place)
            b.store(b.fadd(b.load(total), value), total)
        return over_lanes(b, "fadd", b.load(total))

    return types.float32(types.intp, types.intp), generate


CHUNK = 64
"""Weights that are rounded with one scale."""
FINEST = 127
"""Weights are rounded to so many steps, up and down."""
MIDDLE = 8
"""Numbers of 4 bits are multiplied as numbers without a sign, this much too large."""
TINIEST = 1e-35


def shortener(count: int) -> Any:
    """A kernel that rounds numbers times a factor of their own to 8 bits, so many of them by one scale.

    The result takes addresses, and how many scales there are:

    Args:
        count: a multiple of 16
        x, factors: (chunks * count,) fp32
        to: (chunks * count,) int8
        starts: (chunks,) int32: what a sum of products begins with, as `MIDDLE` asks for
        sizes: (chunks,) fp32: of a step
    """
    parts = count // LANES

    @intrinsic  # type: ignore[untyped-decorator]
    def shorten(context: Any, x: Any, factors: Any, to: Any, starts: Any, sizes: Any, chunks: Any) -> Any:
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            x, factors, to, starts, sizes, chunks = arguments
            with cgutils.for_range(b, chunks) as loop:
                first, place = b.mul(loop.index, I64(parts)), b.mul(loop.index, I64(4))
                scaled = []
                largest, total = same(REALS, TINIEST), same(WHOLES, 0)
                for part in range(parts):
                    step = b.add(first, I64(part))
                    scaled.append(b.fmul(load(b, at(b, x, step), REALS), load(b, at(b, factors, step), REALS)))
                    largest = larger(b, call(b, f"llvm.fabs.v{LANES}f32", REALS, scaled[-1]), largest)
                peak = over_lanes(b, "fmax", largest)
                inverse = spread(b, b.fdiv(F32(FINEST), peak), REALS)
                for part, value in enumerate(scaled):
                    near = call(b, f"llvm.rint.v{LANES}f32", REALS, b.fmul(value, inverse))
                    whole = b.fptosi(near, WHOLES)
                    total = b.add(total, whole)
                    store(b, b.trunc(whole, SMALL), at(b, to, b.add(first, I64(part)), 1), 1)
                kind = ir.FunctionType(I32, [WHOLES])
                added = b.call(
                    cgutils.get_or_insert_function(b.module, kind, f"llvm.vector.reduce.add.v{LANES}i32"), [total]
                )
                store(b, b.mul(added, I32(-MIDDLE)), b.add(starts, place))
                store(b, b.fmul(peak, F32(1 / FINEST)), b.add(sizes, place))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), generate

    return shorten


shorten, shorten_tile = shortener(CHUNK), shortener(LANES)
