"""CPU kernels of attention over blocks that were chosen. Compiled by Numba when first called.

They read blocks where they lie and copy nothing. A line of each page is asked for first, for a core that has to find
out where a page lies waits as long as for a line, and finds many at once; while one block is read the next ones are
asked for, line by line: all lines asked for at once, a core waits for them. Blocks that are not there leave no trace:
those that are read are listed first. Each works on a range of KV heads without the GIL, so several run at once. Arrays
are C-contiguous; all but the cache are fp32. Letters: H KV heads, T queries, G query heads per KV head, N far blocks, K
fetched blocks, M blocks that are read, B positions of a block, D channels, R pairs of channels that turn.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import Shared, compiled, kernels
from engine.attention.block_kernels import add_blocks, exponentials_each, highest_each, scale, score_block
from engine.attention.turn_kernels import parted, turn_to

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
lanes, sharing = kernels("lane"), kernels("sharing")
address, copy, exponentials, highest = lanes.address, lanes.copy, lanes.exponentials, lanes.highest
LANES, NOTHING = lanes.LANES, lanes.NOTHING
PAGE = 4096
"""Bytes of a page of memory, at least."""
SMALLEST = 2.0**-61
"""What a block of landmark attention is weighed with at least: its positions' smallest weights are 2**-64, and their
products must not become numbers that a CPU is slow with."""


@compiled
def hide(scores: Floats, first: int, last: int) -> None:
    """Scores first, …, last - 1 of each group (G, …) count as nothing."""
    for group in range(len(scores)):
        for j in range(first, last):
            scores[group, j] = NOTHING


@compiled
def score(
    queries: int, near: int, turned: int, far: int, keys: NDArray[Any], size: int, dim: int, blocks: Integers,
    numbers: Integers, count: int, turn: int, starts: Floats, interleaved: bool, bounded: bool,
    position: int, recent: int, window: int, scores: Floats,
) -> int:  # fmt: skip
    """Scores of one query's blocks, of those that it sees; returns which is its own, or -1.

    Args:
        queries: address of its heads (G, D); near, turned: of room for them as a block sees them; far: of what bounded
            far blocks see, in the order of `parted`
        keys: for their type
        blocks, numbers: addresses of their keys, and of two blocks that come next, and which they are (count + 2,)
        turn: address of the cosine and sine of its position (2, R)
        scores: (G, count * V), where a block has a multiple of 16, filled
    """
    groups, pairs, step, own_block, own = len(scores), starts.shape[2], -(-size // LANES) * LANES, position // size, -1
    to, to_apart = address(scores), 4 * scores.shape[1]
    cosines = address(starts)
    sines = cosines + 4 * pairs * starts.shape[1]
    for i in range(count):
        number, here = numbers[i], blocks[i]
        distant, asked = number < own_block - recent, far
        if not (bounded and distant):
            row = 4 * pairs * number
            turn_to(queries, dim, groups, turn, cosines + row, sines + row, pairs, interleaved, turned)
            asked = parted(keys, turned, dim, groups, near)
        ahead, beyond = blocks[i + 1] - here, blocks[i + 2] - here
        score_block(keys, here, ahead, beyond, size, dim, asked, groups, to + 4 * step * i, to_apart)
        begin, seen = i * step, size
        if number == own_block:
            own, seen = i, position % size + 1
        hide(scores, begin + seen, begin + step)
        if not distant:
            hide(scores, begin, begin + min(size, max(0, position - window + 1 - number * size)))
    return own


@compiled
def weigh(scores: Floats, group: int, steps: int, estimated: np.float32, shares: Floats) -> None:
    """Scores of 16 * steps positions become their weights in one softmax with what is estimated.

    Args:
        scores: (G, …), of which this group's are taken; of weights the largest is 1
        estimated: logarithm of its mass
        shares: (G, 2), filled: the weight of what is estimated, and what makes all weights one together
    """
    mine = address(scores) + 4 * scores.shape[1] * group
    peak = max(np.float32(highest(mine, steps)), estimated)
    share = np.exp(estimated - peak)
    total = np.float32(exponentials(mine, peak, mine, steps)) + share
    shares[group, 0], shares[group, 1] = share, np.float32(1.0) / total


@compiled
def weigh_gated(
    scores: Floats, group: int, steps: int, size: int, count: int, own: int, estimated: np.float32, room: Floats,
    shares: Floats,
) -> None:  # fmt: skip
    """The same by a grouped softmax: a block weighs what its landmark says, and its positions share that.

    The own one's positions stand beside the landmarks of others. Sixteen blocks are looked at together.

    Args:
        scores: (G, count * 16 * steps) and room for the next multiple of 16 blocks
        own: which block is the query's own, or -1
        room: for three numbers of as many blocks (3, …)
    """
    width, padded = steps * LANES, -(-count // LANES) * LANES
    start, gates = address(scores) + 4 * scores.shape[1] * group, address(room)
    peaks, sums = gates + 4 * room.shape[1], gates + 8 * room.shape[1]
    for i in range(count):
        landmark = i * width + size - 1
        room[0, i] = scores[group, landmark] if i != own else NOTHING
        scores[group, landmark] = NOTHING
    for i in range(count, padded):
        room[0, i] = NOTHING
    for i in range(0, padded, LANES):
        highest_each(start + 4 * width * i, steps, peaks + 4 * i)
    peak = max(np.float32(highest(gates, padded // LANES)), estimated)
    if own >= 0:
        peak = max(peak, room[1, own])
        room[1, own] = peak
    for i in range(0, padded, LANES):
        exponentials_each(start + 4 * width * i, steps, peaks + 4 * i, sums + 4 * i)
    share = np.exp(estimated - peak)
    total = np.float32(exponentials(gates, peak, gates, padded // LANES)) + share
    if own >= 0:
        total += room[2, own]
    for i in range(count):
        if i != own:
            scale(start + 4 * width * i, max(room[0, i] / room[2, i], SMALLEST), steps)
    shares[group, 0], shares[group, 1] = share, np.float32(1.0) / total


@compiled
def attend(
    queries: Floats, far: Floats, keys: NDArray[Any], values: NDArray[Any], size: int, places: Integers,
    numbers: Integers, turns: Floats, starts: Floats, interleaved: bool, gated: bool, bounded: bool,
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
        interleaved: channels 2i and 2i + 1 are turned together, not i and i + R
        gated: the last key of each block but the query's own is a landmark that gates the block
        bounded: blocks more than `recent` before the query's own are seen from one distance
        positions: (T,)
        window: positions that a query reads near itself, its own with them
        rest_weight: logarithm of the mass of what is estimated (H, T, G)
        output: (H, T, G, D): what is estimated; replaced by the result
    """
    groups, dim, most, steps = queries.shape[2], queries.shape[3], places.shape[2], -(-size // LANES)
    padded = -(-most // LANES) * LANES
    scores, shares = np.empty((groups, padded * steps * LANES), np.float32), np.empty((groups, 2), np.float32)
    heads, room = np.empty((3, groups, dim), np.float32), np.empty((3, padded), np.float32)
    blocks, those = np.empty(2 * most + 2, np.int64), np.empty(most, np.int64)
    head_bytes, block_bytes, to_apart = 4 * groups * dim, size * dim * keys.itemsize, 4 * scores.shape[1]
    near = address(heads)
    turned, beyond = near + head_bytes, near + 2 * head_bytes
    for head in range(first, last):
        for query in range(len(positions)):
            count, skipped = 0, (head * len(positions) + query) * head_bytes
            for m in range(most):
                if places[head, query, m] >= 0:
                    blocks[count], those[count] = places[head, query, m] * block_bytes, numbers[head, query, m]
                    count += 1
            for i in range(count):
                blocks[count + i] = address(values) + blocks[i]
                blocks[i] += address(keys)
            blocks[2 * count] = blocks[2 * count + 1] = blocks[2 * count - 1]
            for i in range(2 * count):
                for page in range(0, block_bytes, PAGE):
                    lanes.prefetch(blocks[i] + page, 1)
            asked, result = address(queries) + skipped, address(output) + skipped
            copy(asked, turned, groups * dim // LANES)  # for channels that do not turn
            seen_far = parted(keys, address(far) + skipped, dim, groups, beyond)
            own = score(
                asked, near, turned, seen_far, keys, size, dim, blocks, those, count,
                address(turns) + 8 * turns.shape[2] * query, starts, interleaved, bounded, positions[query], recent,
                window, scores,
            )  # fmt: skip
            for group in range(groups):
                estimated = rest_weight[head, query, group]
                if gated:
                    weigh_gated(scores, group, steps, size, count, own, estimated, room, shares)
                else:
                    weigh(scores, group, count * steps, estimated, shares)
            add_blocks(
                values, size, dim, address(blocks) + 8 * count, count, address(scores), steps, to_apart, groups,
                address(shares), result,
            )  # fmt: skip


def kinds(dtype: Any) -> tuple[Any, ...]:
    """Of the arguments of `attend` before the range; keys and values are of this type."""
    whole, flag, array = sharing.WHOLE, sharing.FLAG, sharing.array
    reals, integers = np.float32, np.int64
    return (
        array(reals, 4), array(reals, 4), array(dtype, 2), array(dtype, 2), whole, array(integers, 3),
        array(integers, 3), array(reals, 3), array(reals, 3), flag, flag, flag, array(integers, 1), whole, whole,
        array(reals, 3), array(reals, 4),
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
