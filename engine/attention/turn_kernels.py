"""How query heads come to see a block: turned by their distance from its start, and in the order in which its keys are
read. Written for LLVM itself; compiled by Numba when first called.

Of bf16, neighbouring numbers are one word, so 32 channels are two vectors, of even and of odd ones (`block_kernels`):
queries are put in that order here, once for all keys of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache import kernels

lanes = kernels("lane")
I64, F32, LANES, REALS, WHOLES = lanes.I64, lanes.F32, lanes.LANES, lanes.REALS, lanes.WHOLES
at, load, store, plus_product, FUSED = lanes.at, lanes.load, lanes.store, lanes.plus_product, lanes.FUSED
PAIR = 2 * LANES
"""Channels of a vector of words."""
EVEN, ODD = (ir.Constant(WHOLES, list(range(start, PAIR, 2))) for start in (0, 1))
FIRST, SECOND = (
    ir.Constant(WHOLES, [start + i + LANES * odd for i in range(LANES // 2) for odd in (0, 1)])
    for start in (0, LANES // 2)
)
"""Lanes of two vectors: what takes neighbours apart, and what puts them together again."""


def apart(builder: Any, one: Any, other: Any) -> tuple[Any, Any]:
    """Even and odd numbers of two vectors that lie side by side."""
    return builder.shuffle_vector(one, other, EVEN), builder.shuffle_vector(one, other, ODD)


def together(builder: Any, even: Any, odd: Any) -> tuple[Any, Any]:
    """Two vectors side by side, of their even and odd numbers."""
    return builder.shuffle_vector(even, odd, FIRST), builder.shuffle_vector(even, odd, SECOND)


def turned_pair(builder: Any, one: Any, other: Any, cos: Any, sin: Any) -> tuple[Any, Any]:
    """The two channels of each pair by such angles."""
    b = builder
    first = b.fsub(b.fmul(one, cos, flags=FUSED), b.fmul(other, sin, flags=FUSED), flags=FUSED)
    return first, plus_product(b, b.fmul(other, cos, flags=FUSED), one, sin)


@intrinsic  # type: ignore[untyped-decorator]
def turn_to(
    context: Any, queries: Any, dim: Any, groups: Any, turn: Any, cosines: Any, sines: Any, pairs: Any,
    interleaved: Any, to: Any,
) -> Any:  # fmt: skip
    """Write the channels that turn of query heads (G, D) as a block sees them: by the distance from its start.

    Takes addresses of the heads; of cosine and sine of their position (2, R); of cosines and sines (R,) of the block's
    first position; and of where they go (G, D).
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        queries, dim, groups, turn, cosines, sines, pairs, interleaved, to = arguments
        half, head = b.mul(pairs, I64(4)), b.mul(dim, I64(4))

        def angles(kind: Any, pair: Any) -> tuple[Any, Any]:
            mine = b.add(turn, b.mul(pair, I64(4)))
            ours = [b.add(place, b.mul(pair, I64(4))) for place in (cosines, sines)]
            cos, sin = load(b, mine, kind), load(b, b.add(mine, half), kind)
            start_cos, start_sin = (load(b, place, kind) for place in ours)
            less = b.fsub(b.fmul(sin, start_cos, flags=FUSED), b.fmul(cos, start_sin, flags=FUSED), flags=FUSED)
            return plus_product(b, b.fmul(cos, start_cos, flags=FUSED), sin, start_sin), less

        def each(kind: Any, begin: Any, count: Any, width: int, write: Callable[..., None]) -> None:
            with cgutils.for_range(b, count) as loop:
                pair = b.add(begin, b.mul(loop.index, I64(width)))
                cos, sin = angles(kind, pair)
                with cgutils.for_range(b, groups) as group:
                    skipped = b.mul(group.index, head)
                    write(kind, b.add(queries, skipped), b.add(to, skipped), pair, cos, sin)

        def by_halves(kind: Any, query: Any, to: Any, pair: Any, cos: Any, sin: Any) -> None:
            first = b.mul(pair, I64(4))
            second = b.add(first, half)
            found = turned_pair(b, load(b, b.add(query, first), kind), load(b, b.add(query, second), kind), cos, sin)
            for value, place in zip(found, (first, second), strict=True):
                store(b, value, b.add(to, place))

        def by_neighbours(kind: Any, query: Any, to: Any, pair: Any, cos: Any, sin: Any) -> None:
            first = b.mul(pair, I64(8))
            second = b.add(first, I64(4 if kind == F32 else 4 * LANES))
            one, other = (load(b, b.add(query, place), kind) for place in (first, second))
            one, other = (one, other) if kind == F32 else apart(b, one, other)
            found = turned_pair(b, one, other, cos, sin)
            for value, place in zip(found if kind == F32 else together(b, *found), (first, second), strict=True):
                store(b, value, b.add(to, place))

        whole = b.and_(pairs, I64(-LANES))
        with b.if_else(b.trunc(interleaved, ir.IntType(1))) as (neighbours, halves):
            for block, write in ((neighbours, by_neighbours), (halves, by_halves)):
                with block:
                    each(REALS, I64(0), b.sdiv(pairs, I64(LANES)), LANES, write)
                    each(F32, whole, b.sub(pairs, whole), 1, write)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 9), generate


@intrinsic  # type: ignore[untyped-decorator]
def parted(context: Any, cache: Any, queries: Any, dim: Any, groups: Any, to: Any) -> Any:
    """Where query heads lie as keys of this cache are multiplied with them: as they are, or put in order there (G, D).

    Takes the cache for its type, and addresses.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        _, queries, dim, groups, to = arguments
        if signature.args[0].dtype == types.float32:
            return queries
        with cgutils.for_range(b, groups) as group:
            skipped = b.mul(b.mul(group.index, dim), I64(4))
            mine, there = b.add(queries, skipped), b.add(to, skipped)
            with cgutils.for_range(b, b.sdiv(dim, I64(PAIR))) as loop:
                first = b.mul(loop.index, I64(2))
                places = first, b.add(first, I64(1))
                for vector, place in zip(
                    apart(b, *(load(b, at(b, mine, i), REALS) for i in places)), places, strict=True
                ):
                    store(b, vector, at(b, there, place))
            with b.if_then(b.icmp_signed("!=", b.and_(dim, I64(LANES)), I64(0))):
                last = b.sdiv(b.sub(dim, I64(LANES)), I64(LANES))
                store(b, load(b, at(b, mine, last), REALS), at(b, there, last))
        return to

    return types.intp(cache, *[types.intp] * 4), generate
