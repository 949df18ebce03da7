"""CPU kernels that find the best of many numbers, none of which is below 0: the bits of such numbers rise as they do.

To count the numbers above a bound costs a fraction of sorting them. So a bound is looked for that as many are above as
are wanted. Compiled by Numba when first called.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from cache.compiling import compiled
from cache.lane_kernels import (
    CHUNK,
    I32,
    I64,
    LANES,
    REALS,
    WHOLES,
    address,
    as_whole,
    at,
    copy,
    load,
    number_at,
    same,
    spread,
)

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
FIRST_STEP = 1 << 24
"""Of bits of fp32: two powers of two."""
NEAR = 128
"""Numbers around a bound that are looked for by themselves."""
SAMPLE = 128
"""Of many numbers so many tell first between which bounds it lies."""
MANY = 32
"""Chunks that are many."""
CLOSE = 1 << 16
"""Of bits of fp32: one in a hundred."""


@intrinsic  # type: ignore[untyped-decorator]
def count_above(context: Any, x: Any, chunks: Any, bound: Any) -> Any:
    """How many of 64 * chunks fp32 numbers, by their bits, are above a bound: as the numbers, if none is below 0."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, chunks, bound = arguments
        bound, parts = spread(b, bound, WHOLES), range(CHUNK // LANES)
        found = [cgutils.alloca_once_value(b, same(WHOLES, 0)) for _ in parts]
        with cgutils.for_range(b, chunks) as loop:
            for part in parts:
                step = b.add(b.mul(loop.index, I64(len(parts))), I64(part))
                above = b.icmp_signed(">", load(b, at(b, x, step), WHOLES), bound)
                b.store(b.sub(b.load(found[part]), b.sext(above, WHOLES)), found[part])
        of_all = [b.load(mine) for mine in found]
        whole = b.add(b.add(*of_all[:2]), b.add(*of_all[2:]))
        kind = ir.FunctionType(I32, [WHOLES])
        add = cgutils.get_or_insert_function(b.module, kind, f"llvm.vector.reduce.add.v{LANES}i32")
        return b.sext(b.call(add, [whole]), I64)

    return types.int64(types.intp, types.intp, types.int32), generate


def finder(kind: Any, compare: str, bound_kind: Any) -> Any:
    """A kernel that tells which of 64 numbers from an address on are above a bound: a bit for each.

    Args:
        kind: as what they are loaded, 16 at once
        compare: LLVM's name of what compares them
        bound_kind: of the bound
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def where(context: Any, x: Any, bound: Any) -> Any:
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            x, bound = arguments
            bound, bits = spread(b, bound, kind), I64(0)
            for step in range(CHUNK // LANES):
                above = getattr(b, compare)(">", load(b, at(b, x, I64(step)), kind), bound)
                mine = b.zext(b.bitcast(above, ir.IntType(LANES)), I64)
                bits = b.or_(bits, b.shl(mine, I64(LANES * step)))
            return bits

        return types.uint64(types.intp, bound_kind), generate

    return where


where_above, where_larger = finder(WHOLES, "icmp_signed", types.int32), finder(REALS, "fcmp_ordered", types.float32)
"""By their bits, if none is below 0; and by what they are."""


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(context: Any, bits: Any) -> Any:
    """The number of the lowest bit that is set."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return b.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@compiled
def between(place: int, chunks: int, low: int, high: int) -> Floats:
    """Of 64 * chunks fp32 numbers those whose bits are above a bound and not above another one; -1 behind: (NEAR,)."""
    near, found = np.full(NEAR, np.float32(-1.0)), 0
    for chunk in range(chunks):
        at_chunk = place + 4 * CHUNK * chunk
        bits = where_above(at_chunk, np.int32(low)) & ~where_above(at_chunk, np.int32(high))
        while bits:
            near[found] = number_at(at_chunk + 4 * lowest_bit(bits))
            bits &= bits - np.uint64(1)
            found += 1
    return near


@compiled
def guesses(place: int, chunks: int, wanted: int, high: int) -> tuple[np.int64, np.int64]:
    """Bits, from 0 to those of `high`, that more and fewer than `wanted` of many numbers are above, most likely."""
    sample, apart = np.empty(SAMPLE, np.float32), CHUNK * chunks // (SAMPLE // LANES)
    for part in range(SAMPLE // LANES):  # 16 in a row each
        copy(place + 4 * apart * part, address(sample) + 4 * LANES * part, 1)
    share = wanted * SAMPLE / (CHUNK * chunks)
    off = 2.0 * math.sqrt(share) + 1.0
    lower, upper = int(share + off), int(max(0.0, share - off))
    return np.int64(quantile(sample, lower, high)), np.int64(quantile(sample, upper, high))


@compiled
def quantile(sample: Floats, wanted: int, high: int) -> int:
    """Bits from 0 to `high`, to one in a hundred, that so many of a sample are above."""
    low = 0
    while high - low > CLOSE:
        middle = low + (high - low) // 2
        if count_above(address(sample), SAMPLE // CHUNK, np.int32(middle)) > wanted:
            low = middle
        else:
            high = middle
    return high


@compiled
def bound_of(place: int, chunks: int, wanted: int, most: float) -> tuple[int, int]:
    """Bits that at most `wanted` of 64 * chunks fp32 numbers are above, but more are not below; how many are above.

    Args:
        place: address of the numbers, of which more than wanted are not below 0
        most: no more than wanted are above this
    """
    low, below = np.int64(-1), np.int64(CHUNK * chunks)
    high, above = np.int64(as_whole(np.float32(most))), np.int64(-1)
    if chunks >= MANY and high > 0:
        for guess in guesses(place, chunks, wanted, high):
            found = count_above(place, chunks, np.int32(guess))
            if found > wanted and guess > low:
                low, below = guess, found
            elif found <= wanted and guess < high:
                high, above = guess, found
    if above < 0:
        above = count_above(place, chunks, np.int32(high))
    step, tried = np.int64(FIRST_STEP), high
    while low < 0 and tried > step:  # down to where more are above
        tried -= step
        found = count_above(place, chunks, np.int32(tried))
        if found > wanted:
            low, below = tried, found
            break
        high, above, step = tried, found, 2 * step
    slow, outside, near = 0, np.int64(0), np.empty(0, np.float32)
    while above != wanted and high - low > 1:
        if below - above <= NEAR and not len(near):
            near, outside = between(place, chunks, np.int32(low), np.int32(high)), above
            place, chunks = address(near), NEAR // CHUNK
        middle = low + (high - low) // 2
        if not len(near) and low >= 0 and slow < 2:  # as numbers fall off on a logarithmic scale, to either side
            aim = wanted + NEAR // 3 if below - wanted > wanted - above else wanted - NEAR // 3
            all_of, some = math.log(below), math.log(max(aim, 0.75))
            way = (all_of - some) / (all_of - math.log(max(float(above), 0.5)))
            middle = min(max(low + np.int64((high - low) * way), low + 1), high - 1)
        found = outside + count_above(place, chunks, np.int32(middle))
        slow = slow + 1 if slow < 2 and 4 * max(high - middle, middle - low) > 3 * (high - low) else 0
        if found > wanted:
            low, below = middle, found
        else:
            high, above = middle, found
    return int(high), int(above)


@compiled
def best_of(x: Floats, count: int, wanted: int, most: float, to: Integers) -> int:
    """The numbers of the `wanted` largest of x[:count], none below 0, in rising order; of equal ones the first.

    Args:
        x: with room up to a multiple of 64, written over
        most: of them all together
        to: filled

    Returns:
        How many there are: fewer where others are below 0.
    """
    if wanted <= 0:
        return 0
    chunks = (count + CHUNK - 1) // CHUNK
    x[count : chunks * CHUNK] = np.float32(-1.0)
    place, bound = address(x), np.int64(-1)
    above = count_above(place, chunks, np.int32(bound))
    if above <= wanted:
        wanted = above
    else:
        bound, above = bound_of(place, chunks, wanted, np.float32(1.01) * most / wanted)
    ties, found = max(0, wanted - above), 0
    for chunk in range(chunks):
        bits = where_above(place + 4 * CHUNK * chunk, np.int32(bound))
        if ties:
            equal, chosen = where_above(place + 4 * CHUNK * chunk, np.int32(bound - 1)) & ~bits, np.uint64(0)
            while ties and equal:
                lowest = equal & (~equal + np.uint64(1))
                equal, chosen, ties = equal & ~lowest, chosen | lowest, ties - 1
            bits |= chosen
        while bits and found < wanted:  # more are above only where numbers are none, and `most` says nothing
            to[found] = CHUNK * chunk + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            found += 1
    return found
