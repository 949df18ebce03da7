"""CPU kernels that choose the best of many scores. Compiled by Numba when first called.

Letters in shapes: T queries, G query heads per KV head, R room for all blocks, a multiple of 16 and 64 more, K chosen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cache.compiling import compiled
from cache.four_bits import LANES
from cache.lane_kernels import CHUNK, NOTHING, address, exponentials, highest
from cache.walk_kernels import steps_of

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
STRETCH = 64
"""Blocks that are looked at together for one that is better."""


@compiled
def sink(best: Floats, blocks: Integers, place: int, count: int) -> None:
    """Let an entry of a heap, the smallest of which comes first, go down to its place among the first `count`."""
    value, block = best[place], blocks[place]
    child = 2 * place + 1
    while child < count:
        if child + 1 < count and best[child + 1] < best[child]:
            child += 1
        if best[child] >= value:
            break
        best[place], blocks[place] = best[child], blocks[child]
        place, child = child, 2 * child + 1
    best[place], blocks[place] = value, block


@compiled
def best_blocks(wanted: Floats, sinks: int, count: int, best: Floats, blocks: Integers) -> None:
    """The blocks from `sinks` on, below `count`, that are wanted most (K,), best first; -1 where there is nothing left.

    Room for 64 more must be behind those that are wanted.
    """
    found = min(len(blocks), max(0, count - sinks))
    for n in range(found):
        best[n], blocks[n] = wanted[sinks + n], sinks + n
    blocks[found:] = -1
    for place in range(found // 2 - 1, -1, -1):
        sink(best, blocks, place, found)
    start = sinks + found
    while found and start < count:  # most stretches hold nothing better
        end = min(start + STRETCH, count)
        if highest(address(wanted) + 4 * start, STRETCH // LANES) > best[0]:
            for n in range(start, end):
                if wanted[n] > best[0]:
                    best[0], blocks[0] = wanted[n], n
                    sink(best, blocks, 0, found)
        start = end
    in_order(best, blocks, found)


@compiled
def in_order(best: Floats, blocks: Integers, found: int) -> None:
    """The first `found` of a heap, the best ones first."""
    for end in range(found - 1, 0, -1):  # the smallest goes last
        best[0], best[end] = best[end], best[0]
        blocks[0], blocks[end] = blocks[end], blocks[0]
        sink(best, blocks, 0, end)


@compiled
def choose_head(scores: Floats, sinks: int, ends: Integers, blocks: Integers, whole: Floats) -> None:
    """The best blocks of one head's queries, by the mean, over its query heads, of their scores' softmax.

    Args:
        scores: (T * G, R); written over
        sinks: the first block that may be chosen
        ends: for each query the first one that may not be chosen any more (T,)
        blocks: (T, K), filled, the best ones first; -1 where there was nothing left
        whole: room (R,)
    """
    groups, best = len(scores) // len(ends), np.empty(blocks.shape[1], np.float32)
    for query in range(len(ends)):
        end = max(0, ends[query])
        steps = steps_of(end)
        wanted = scores[query * groups]
        if groups > 1:
            wanted = whole
            whole[:end] = 0.0
            for group in range(groups):
                mine = scores[query * groups + group]
                mine[:sinks] = NOTHING
                mine[end : steps * LANES] = NOTHING
                total = exponentials(address(mine), highest(address(mine), steps), address(mine), steps)
                factor = np.float32(1.0) / np.float32(total)
                for n in range(end):
                    whole[n] += mine[n] * factor
        best_blocks(wanted, sinks, end, best, blocks[query])


@compiled
def weigh_head(
    masses: Floats, sinks: int, ends: Integers, blocks: Integers, chunks: int, weight: Floats, factors: Floats
) -> None:
    """Weights of the blocks that are not read, and the logarithm of the mass of all of them.

    Args:
        masses: their logarithms (T * G, R), replaced by weights; those of 64 * chunks blocks, as good as 0 for what is
            read, may not be, or is not there
        sinks, ends, blocks: as in `choose_head`
        weight: (T, G), filled
        factors: what makes the weights of a query head one (T * G,), filled; 0 where there is nothing
    """
    groups, padded = weight.shape[1], chunks * CHUNK
    for query in range(len(ends)):
        end, chosen = max(sinks, ends[query]), blocks[query]
        for group in range(groups):
            row = query * groups + group
            mass = masses[row]
            mass[:sinks] = NOTHING
            mass[end:padded] = NOTHING
            for k in range(len(chosen)):
                if chosen[k] >= 0:
                    mass[chosen[k]] = NOTHING
            peak = np.float32(highest(address(mass), padded // LANES))
            total = np.float32(exponentials(address(mass), peak, address(mass), padded // LANES))
            nothing = peak <= np.float32(NOTHING)
            weight[query, group] = NOTHING if nothing else peak + np.log(total)
            factors[row] = np.float32(0.0) if nothing else np.float32(1.0) / total
