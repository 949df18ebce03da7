"""A CPU kernel that tells what stands for pairs and sections of blocks; what it means is `cache.sections.Gathered`.

By torch it is some hundred small calls for each layer, whose threads wait for each other where a prompt is read. Sums
go over members and over channels in their order. Compiled by Numba when first called. Letters in shapes: H KV heads, N
blocks, S members of a group, D channels, W directions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cache.compiling import compiled
from cache.sections import PAIR, PAIRS, SECTION
from cache.slopes import ROUNDS

Floats = NDArray[np.float32]
TINY = np.float32(np.finfo(np.float32).tiny)
MEANS, VARIANCES, VALUES, ALONG, TURNING = range(5)
"""Of members, and of what is put together from them."""


@compiled
def dot(one: Floats, other: Floats) -> np.float32:
    total = np.float32(0)
    for d in range(len(one)):
        total += one[d] * other[d]
    return total


@compiled
def main_direction(vectors: Floats, direction: Floats) -> None:
    """As `cache.slopes.main_direction` of vectors (V, D), to a direction (D,)."""
    farthest, best = 0, np.float32(-1)
    for i in range(len(vectors)):
        reach = dot(vectors[i], vectors[i])
        if reach > best:
            farthest, best = i, reach
    direction[:] = vectors[farthest]
    found = np.empty_like(direction)
    for _ in range(ROUNDS):
        found[:] = np.float32(0)
        for i in range(len(vectors)):
            along = dot(vectors[i], direction)
            for d in range(len(found)):
                found[d] += vectors[i, d] * along
        size = max(np.sqrt(dot(found, found)), TINY)
        for d in range(len(found)):
            direction[d] = found[d] / size


@compiled
def put_together(members: Floats, group: Floats) -> None:
    """Members (5, S, D) as one (5, D), which is filled."""
    count, dim = members.shape[1], members.shape[2]
    share = np.float32(1) / np.float32(count)
    vectors, direction = np.empty((2 * count, dim), np.float32), np.empty(dim, np.float32)
    group[:] = np.float32(0)
    for part in (MEANS, VALUES):
        for s in range(count):
            for d in range(dim):
                group[part, d] += members[part, s, d] * share
    for s in range(count):
        for d in range(dim):
            vectors[s, d] = members[MEANS, s, d] - group[MEANS, d]
            vectors[count + s, d] = members[ALONG, s, d]
    main_direction(vectors, direction)
    spread = np.float32(0)
    for s in range(count):
        between, within, left = dot(vectors[s], direction), dot(vectors[count + s], direction), np.float32(0)
        for d in range(dim):
            rest = members[VARIANCES, s, d] * direction[d]  # what no slope tells
            left += rest * direction[d]
            group[ALONG, d] += vectors[s, d] * between + vectors[count + s, d] * within + rest
            apart = members[VALUES, s, d] - group[VALUES, d]
            group[TURNING, d] += apart * between + members[TURNING, s, d] * within
            square = vectors[s, d] * vectors[s, d] + vectors[count + s, d] * vectors[count + s, d]
            group[VARIANCES, d] += (square + members[VARIANCES, s, d]) * share
        spread += (between * between + within * within + left) * share
    spread = share / max(np.sqrt(spread), TINY)
    for d in range(dim):
        group[ALONG, d] *= spread
        group[TURNING, d] *= spread
        group[VARIANCES, d] = max(np.float32(0), group[VARIANCES, d] - group[ALONG, d] * group[ALONG, d])


@compiled
def narrow(vector: Floats, directions: Floats, to: Floats) -> None:
    """What a vector (D,) is in directions (D, W), to (W,)."""
    to[:] = np.float32(0)
    for d in range(len(vector)):
        for w in range(len(to)):
            to[w] += vector[d] * directions[d, w]


@compiled
def gather(
    blocks: Floats, keys: Floats, values: Floats, pairs: Floats, sections: Floats, first: int, last: int
) -> None:
    """What stands for pairs and sections, of heads first, …, last - 1.

    Args:
        blocks: five parts of each (5, H, N, D), N a multiple of SECTION
        keys, values: directions (H, D, W) and (H, W, D), by `cache.usual`
        pairs: mean, slope and size (H, N / PAIR, 2 * W + 1), filled
        sections: mean values and both vectors of their slopes (3, H, N / SECTION, W), filled
    """
    dim, wide = keys.shape[1:]
    members, of_pairs = np.empty((5, PAIR, dim), np.float32), np.empty((5, PAIRS, dim), np.float32)
    group = np.empty((5, dim), np.float32)
    for head in range(first, last):
        of_keys, of_values = keys[head], values[head].T.copy()
        for section in range(blocks.shape[2] // SECTION):
            for pair in range(PAIRS):
                begin = section * SECTION + pair * PAIR
                members[:] = blocks[:, head, begin : begin + PAIR]
                put_together(members, group)
                of_pairs[:, pair] = group
                told, size = pairs[head, section * PAIRS + pair], np.float32(0)
                narrow(group[MEANS], of_keys, told[:wide])
                narrow(group[ALONG], of_keys, told[wide : 2 * wide])
                for d in range(dim):
                    size = max(size, group[VARIANCES, d])
                told[2 * wide] = size
            put_together(of_pairs, group)
            narrow(group[VALUES], of_values, sections[0, head, section])
            narrow(group[ALONG], of_keys, sections[1, head, section])
            narrow(group[TURNING], of_values, sections[2, head, section])


def warm_up() -> None:
    """Compile now, or load what an earlier start compiled, rather than in somebody's first request."""
    of_blocks, of_sections = (np.empty((parts, 1, 0, 1), np.float32) for parts in (5, 3))
    one = np.empty((1, 1, 1), np.float32)
    gather(of_blocks, one, one, np.empty((1, 0, 3), np.float32), of_sections, 0, 1)
