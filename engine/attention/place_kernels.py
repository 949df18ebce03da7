"""CPU kernels around choosing and attending, for queries that attend together: put them and their keys in place, tell
where blocks lie, and write what came out. Jobs of a team; letters in shapes as in `attend_kernels`, and P positions of
the step, F blocks that are read whatever is chosen, S channels that turn.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from cache import Shared, compiled, kernels
from engine.linear_kernels import widen

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
lanes, sharing, team = kernels("lane"), kernels("sharing"), kernels("team")
address, LANES, NOTHING = lanes.address, lanes.LANES, lanes.NOTHING
I64, REALS, WHOLES = lanes.I64, lanes.REALS, lanes.WHOLES
HALVES = ir.VectorType(ir.IntType(16), LANES)


@intrinsic  # type: ignore[untyped-decorator]
def narrow(context: Any, array: Any, offset: Any, x: Any, steps: Any) -> Any:
    """Write 16 * steps fp32 numbers, from an address, so many bytes behind an array's first number, in its type."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        array, offset, x, steps = arguments
        kind = signature.args[0]
        width = kind.dtype.bitwidth // 8
        start = b.add(b.ptrtoint(context.make_array(kind)(context, b, array).data, I64), offset)
        with cgutils.for_range(b, steps) as loop:
            value = lanes.load(b, lanes.at(b, x, loop.index), REALS)
            if width == 2:  # to the nearest, and of two to the even one
                whole = b.bitcast(value, WHOLES)
                odd = b.and_(b.lshr(whole, lanes.same(WHOLES, 16)), lanes.same(WHOLES, 1))
                whole = b.add(whole, b.add(odd, lanes.same(WHOLES, 0x7FFF)))
                value = b.trunc(b.lshr(whole, lanes.same(WHOLES, 16)), HALVES)
            lanes.store(b, value, lanes.at(b, start, loop.index, width), width)
        return context.get_dummy_value()

    return types.void(array, *[types.intp] * 3), generate


@compiled
def turn(x: Floats, cos: Floats, sin: Floats, interleaved: bool, to: Floats) -> None:
    """Rotate x (D,) as `Rotation.turned` does by cos and sin (S,)."""
    size = len(cos)
    if interleaved:
        for i in range(0, size, 2):
            to[i] = x[i] * cos[i] + x[i + 1] * sin[i]
            to[i + 1] = x[i + 1] * cos[i + 1] + x[i] * sin[i + 1]
    else:
        half = size // 2
        for i in range(half):
            to[i] = x[i] * cos[i] + x[half + i] * sin[i]
        for i in range(half):
            to[half + i] = x[half + i] * cos[half + i] + x[i] * sin[half + i]
    to[size:] = x[size:]


@compiled
def place(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], rows: Integers, scale: Floats, far_turns: Floats,
    own_turns: Floats, interleaved: bool, keys: NDArray[Any], values: NDArray[Any], own: Integers, offsets: Integers,
    size: int, queries: Floats, far: Floats, weight: Floats, rest: Floats, first: int, last: int,
) -> None:  # fmt: skip
    """Queries of heads first, …, last - 1 scaled, and as far blocks see them; their keys and values into the cache.

    Args:
        q, k, v: unrotated (P, query heads, D), (P, H, D) and (P, H, D), fp32 or the bits of bf16
        rows: which of them attend together (T,)
        scale: of their queries (T,)
        far_turns, own_turns: cosine and sine of the far distance, and of the place in the block (2, T, S)
        keys, values: of the cache (places * B, D), fp32 or the bits of bf16
        own: places of the queries' own blocks (H, T), or nothing (0, 0): then the cache has their keys already
        offsets: places in them (T,)
        queries, far: (H, T, G, D), filled
        weight, rest: (H, T, G) and (H, T, G, D), filled with what stands for nothing
    """
    groups, dim = queries.shape[2], queries.shape[3]
    steps, room, turned = dim // LANES, np.empty(dim, np.float32), np.empty(dim, np.float32)
    for head in range(first, last):
        for t in range(len(rows)):
            for group in range(groups):
                query = queries[head, t, group]
                at = (rows[t] * q.shape[1] + head * groups + group) * dim * q.itemsize
                widen(q, at, address(query), steps, 0)
                for d in range(dim):
                    query[d] *= scale[t]
                turn(query, far_turns[0, t], far_turns[1, t], interleaved, far[head, t, group])
            if not len(own):
                continue
            at = (rows[t] * k.shape[1] + head) * dim * k.itemsize
            to = (own[head, t] * size + offsets[t]) * dim * keys.itemsize
            widen(k, at, address(room), steps, 0)
            turn(room, own_turns[0, t], own_turns[1, t], interleaved, turned)
            narrow(keys, to, address(turned), steps)
            widen(v, at, address(room), steps, 0)
            narrow(values, to, address(room), steps)
        weight[head] = NOTHING
        rest[head] = 0.0


@compiled
def spot(
    fixed: Integers, chosen: Integers, tables: Integers, heads: int, numbers: Integers, places: Integers, first: int,
    last: int,
) -> None:  # fmt: skip
    """Which blocks heads first, …, last - 1 read, and where they lie in a pool.

    Args:
        fixed: block numbers that each query reads anyway (T, F), below 0 for none
        chosen: (H, T, K), of which the first ones are read: as many as there is room for
        tables: address of the slots of each query's blocks (T,)
        heads: of a block
        numbers, places: (H, T, M), filled; places -1 for none
    """
    count, read = fixed.shape[1], numbers.shape[2]
    for head in range(first, last):
        for t in range(len(tables)):
            for m in range(read):
                number = fixed[t, m] if m < count else chosen[head, t, m - count]
                numbers[head, t, m] = number
                places[head, t, m] = team.read(tables[t] + 8 * number) * heads + head if number >= 0 else -1


@compiled
def finish(result: Floats, output: NDArray[Any], rows: Integers, first: int, last: int) -> None:
    """Write what heads first, …, last - 1 attended to (H, T, G, D) to rows (T,) of (P, query heads, D)."""
    groups, dim = result.shape[2], result.shape[3]
    for head in range(first, last):
        for t in range(len(rows)):
            for group in range(groups):
                at = (rows[t] * output.shape[1] + head * groups + group) * dim * output.itemsize
                narrow(output, at, address(result[head, t, group]), dim // LANES)


# -- as jobs ------------------------------------------------------------------------------------------------------

WHOLE, FLAG, array = sharing.WHOLE, sharing.FLAG, sharing.array
SPOT = (
    array(np.int64, 2), array(np.int64, 3), array(np.int64, 1), WHOLE, array(np.int64, 3), array(np.int64, 3),
)  # fmt: skip
unpack_spot = sharing.unpacker(*SPOT)


def place_kinds(given: Any, kept: Any) -> tuple[Any, ...]:
    """Of the arguments of `place` for queries and a cache of these types."""
    reals, integers = np.float32, np.int64
    return (
        *[array(given, 3)] * 3, array(integers, 1), array(reals, 1), array(reals, 3), array(reals, 3), FLAG,
        array(kept, 2), array(kept, 2), array(integers, 2), array(integers, 1), WHOLE, array(reals, 4),
        array(reals, 4), array(reals, 3), array(reals, 4),
    )  # fmt: skip


def finish_kinds(given: Any) -> tuple[Any, ...]:
    """The same of `finish`."""
    return array(np.float32, 4), array(given, 3), array(np.int64, 1)


unpack_ww, unpack_ws, unpack_sw, unpack_ss = (
    sharing.unpacker(*place_kinds(given, kept)) for given in (np.float32, np.uint16) for kept in (np.float32, np.uint16)
)
unpack_wide, unpack_short = (sharing.unpacker(*finish_kinds(given)) for given in (np.float32, np.uint16))


def place_ww(arguments: int, first: int, last: int) -> None:
    """`place` with arguments at an address, of fp32 into fp32."""
    place(*unpack_ww(arguments), first, last)


def place_ws(arguments: int, first: int, last: int) -> None:
    """The same of fp32 into bf16."""
    place(*unpack_ws(arguments), first, last)


def place_sw(arguments: int, first: int, last: int) -> None:
    """The same of bf16 into fp32."""
    place(*unpack_sw(arguments), first, last)


def place_ss(arguments: int, first: int, last: int) -> None:
    """The same of bf16 into bf16."""
    place(*unpack_ss(arguments), first, last)


def spot_job(arguments: int, first: int, last: int) -> None:
    """`spot` with arguments at an address."""
    spot(*unpack_spot(arguments), first, last)


def finish_wide(arguments: int, first: int, last: int) -> None:
    """`finish` with arguments at an address, to fp32."""
    finish(*unpack_wide(arguments), first, last)


def finish_short(arguments: int, first: int, last: int) -> None:
    """The same to bf16."""
    finish(*unpack_short(arguments), first, last)


@functools.cache
def shared_place(given: np.dtype[Any], kept: np.dtype[Any]) -> Shared:
    """`place` for `Tasks`, for queries and a cache of these types."""
    assert {given, kept} <= {np.dtype(np.float32), np.dtype(np.uint16)}, "it would be misread"
    short = given == np.uint16, kept == np.uint16
    jobs = {(False, False): place_ww, (False, True): place_ws, (True, False): place_sw, (True, True): place_ss}
    return sharing.shared(jobs[short], *place_kinds(given, kept))


@functools.cache
def shared_spot() -> Shared:
    """`spot` for `Tasks`."""
    return sharing.shared(spot_job, *SPOT)


@functools.cache
def shared_finish(given: np.dtype[Any]) -> Shared:
    """`finish` for `Tasks`, to this type."""
    return sharing.shared(finish_short if given == np.uint16 else finish_wide, *finish_kinds(given))
