"""CPU kernels of attention over blocks that were chosen. Compiled by Numba when first called.

They read blocks where they lie and copy nothing; while one is read the next one is asked for, line by line: asked for
all at once, a core waits for it. Each works on a range of KV heads without the GIL, so several run at
once. Arrays are C-contiguous; all but the cache are fp32. Letters: H KV heads, T queries, G query heads per KV head, N
far blocks, K fetched blocks, M blocks that are read, B positions of a block, D channels, R pairs of channels that turn.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import Shared, compiled, kernels
from engine.linear_kernels import add_rows, multiply_before

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
lanes, sharing = kernels("lane"), kernels("sharing")
address, exponentials, highest = lanes.address, lanes.exponentials, lanes.highest
LANES, NOTHING = lanes.LANES, lanes.NOTHING


@compiled
def turn_to(
    query: Floats, number: int, turn: Floats, starts: Floats, stride: int, apart: int, sines: Floats, turned: Floats
) -> None:
    """Query heads (G, D) as they see a block: rotated by the distance from its start; see `attend`.

    Args:
        sines: room (2, R)
        turned: (G, D), filled
    """
    pairs = turn.shape[1]
    for i in range(pairs):
        sines[0, i] = turn[0, i] * starts[0, number, i] + turn[1, i] * starts[1, number, i]
        sines[1, i] = turn[1, i] * starts[0, number, i] - turn[0, i] * starts[1, number, i]
    for group in range(len(query)):
        if stride == 1:  # neighbours turn alike, so these loops become vectors
            for i in range(pairs):
                turned[group, i] = query[group, i] * sines[0, i] - query[group, apart + i] * sines[1, i]
            for i in range(pairs):
                turned[group, apart + i] = query[group, apart + i] * sines[0, i] + query[group, i] * sines[1, i]
        else:
            for i in range(pairs):
                one, other = query[group, i * stride], query[group, i * stride + apart]
                turned[group, i * stride] = one * sines[0, i] - other * sines[1, i]
                turned[group, i * stride + apart] = other * sines[0, i] + one * sines[1, i]
        for d in range(2 * pairs, query.shape[1]):
            turned[group, d] = query[group, d]


@compiled
def gate(scores: Floats, size: int, blocks: int, own: int) -> None:
    """Grouped softmax as a bias on scores (G, M * B …): a block weighs what its landmark says, but the own one."""
    steps = (size - 1 + LANES - 1) // LANES
    room = np.empty(steps * LANES, np.float32)
    for group in range(scores.shape[0]):
        for m in range(blocks):
            block = scores[group, m * size : (m + 1) * size]
            if m != own:
                room[: size - 1] = block[: size - 1]
                room[size - 1 :] = NOTHING
                peak = np.float32(highest(address(room), steps))
                shift = block[size - 1] - peak - np.log(exponentials(address(room), peak, address(room), steps))
                for j in range(size - 1):
                    block[j] += shift
            block[size - 1] = NOTHING


@compiled
def next_to(pool: NDArray[Any], block_bytes: int, places: Integers, m: int) -> int:
    """Address of the first block from places[m] on that is there, or 0."""
    while m < len(places) and places[m] < 0:
        m += 1
    return address(pool) + places[m] * block_bytes if m < len(places) else 0


@compiled
def attend(
    queries: Floats, far: Floats, keys: NDArray[Any], values: NDArray[Any], size: int, places: Integers,
    numbers: Integers, turns: Floats, starts: Floats, stride: int, apart: int, gated: bool, bounded: bool,
    positions: Integers, recent: int, window: int, rest_weight: Floats, output: Floats, first: int, last: int,
) -> None:  # fmt: skip
    """One softmax over blocks and what is estimated of others, for heads first, …, last - 1.

    Args:
        queries: unrotated and scaled (H, T, G, D)
        far: as bounded far blocks see them (H, T, G, D)
        keys, values: (places * B, D), fp32 or the bits of bf16; keys relative to their block
        places: of the blocks that are read (H, T, M), -1 for none
        numbers: of these blocks in the session (H, T, M)
        turns: cosine and sine of the queries' positions (T, 2, R)
        starts: cosine and sine of the first position of each block of the session (2, blocks, R)
        stride, apart: channels i * stride and i * stride + apart make pair i
        gated: the last key of each block but the query's own is a landmark that gates the block
        bounded: blocks more than `recent` before the query's own are seen from one distance
        positions: (T,)
        window: positions that a query reads near itself, its own with them
        rest_weight: logarithm of the mass of what is estimated (H, T, G)
        output: (H, T, G, D): what is estimated; replaced by the result
    """
    groups, dim, read = queries.shape[2], queries.shape[3], places.shape[2]
    turned, sines = np.empty((groups, dim), np.float32), np.empty((2, turns.shape[2]), np.float32)
    steps = (read * size + LANES - 1) // LANES
    scores = np.empty((groups, steps * LANES), np.float32)
    to_apart, block_bytes = 4 * steps * LANES, size * dim * keys.itemsize
    for head in range(first, last):
        for query in range(len(positions)):
            position, result = positions[query], output[head, query]
            own_block, own = position // size, -1
            scores[:, read * size :] = NOTHING
            for m in range(read):
                place, number = places[head, query, m], numbers[head, query, m]
                if place < 0:
                    scores[:, m * size : (m + 1) * size] = NOTHING
                    continue
                distant = number < own_block - recent
                if bounded and distant:
                    turned[:] = far[head, query]
                else:
                    turn_to(queries[head, query], number, turns[query], starts, stride, apart, sines, turned)
                here, to = address(keys) + place * block_bytes, address(scores) + 4 * m * size
                following = next_to(keys, block_bytes, places[head, query], m + 1)
                if following == 0:
                    following = next_to(values, block_bytes, places[head, query], 0)
                first_row = place * size
                multiply_before(
                    keys, address(turned), 4 * dim, to, to_apart, groups, first_row, first_row + size, following - here
                )  # fmt: skip
                if number == own_block:
                    own = m
                    scores[:, m * size + position % size + 1 : (m + 1) * size] = NOTHING
                if not distant:
                    hidden = min(size, max(0, position - window + 1 - number * size))
                    scores[:, m * size : m * size + hidden] = NOTHING
            if gated:
                gate(scores, size, read, own)
            for group in range(groups):
                mine, estimated = scores[group], rest_weight[head, query, group]
                peak = max(np.float32(highest(address(mine), steps)), estimated)
                share = np.exp(estimated - peak)
                total = np.float32(exponentials(address(mine), peak, address(mine), steps)) + share
                factor = np.float32(1.0) / total
                for i in range(len(mine)):
                    mine[i] *= factor
                for d in range(dim):
                    result[group, d] *= share / total
            for m in range(read):
                place = places[head, query, m]
                if place < 0:
                    continue
                here, factors = address(values) + place * block_bytes, address(scores) + 4 * m * size
                following = next_to(values, block_bytes, places[head, query], m + 1)
                ahead = following - here if following else 0
                add_rows(values, place * size, size, factors, to_apart, address(result), 4 * dim, groups, ahead)


def kinds(dtype: Any) -> tuple[Any, ...]:
    """Of the arguments of `attend` before the range; keys and values are of this type."""
    whole, flag, array = sharing.WHOLE, sharing.FLAG, sharing.array
    reals, integers = np.float32, np.int64
    return (
        array(reals, 4), array(reals, 4), array(dtype, 2), array(dtype, 2), whole, array(integers, 3),
        array(integers, 3), array(reals, 3), array(reals, 3), whole, whole, flag, flag, array(integers, 1), whole,
        whole, array(reals, 3), array(reals, 4),
    )  # fmt: skip


unpack_wide, unpack_short = (sharing.unpacker(*kinds(dtype)) for dtype in (np.float32, np.uint16))


def attend_wide(arguments: int, first: int, last: int) -> None:
    """`attend` with arguments at an address, over a cache of fp32."""
    attend(*unpack_wide(arguments), first, last)


def attend_short(arguments: int, first: int, last: int) -> None:
    """The same over a cache of bf16."""
    attend(*unpack_short(arguments), first, last)


@functools.cache
def shared_attend(dtype: np.dtype[Any]) -> Shared:
    """`attend` for `share`, over a cache of this type."""
    return sharing.shared(attend_short if dtype == np.uint16 else attend_wide, *kinds(dtype))
