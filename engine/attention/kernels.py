"""CPU kernels of the fused attention, compiled by Numba when they are first called.

They read blocks where they lie: nothing is gathered. Each releases the GIL and works on a range of rows, a row
being one query of one KV head, so callers may run several at once. Arrays are C-contiguous fp32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cache import compiled

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@compiled
def top_blocks(scores: Floats, first: int, ends: Integers, blocks: Integers, start: int, stop: int) -> None:
    """The best-scored blocks of rows start … stop - 1.

    Args:
        scores: (kv_heads, queries, far blocks)
        first: the first block that may be chosen
        ends: (queries,) for each query the first block that may not be chosen any more
        blocks: (kv_heads, queries, fetch), filled; -1 where there was nothing left to fetch
    """
    queries, fetch = blocks.shape[1], blocks.shape[2]
    best = np.empty(fetch, np.float32)
    for row in range(start, stop):
        head, query = row // queries, row % queries
        found, lowest = 0, 0
        for block in range(first, ends[query]):
            score = scores[head, query, block]
            if found < fetch:
                best[found], blocks[head, query, found] = score, block
                found += 1
            elif score > best[lowest]:
                best[lowest], blocks[head, query, lowest] = score, block
            else:
                continue
            if found == fetch:
                lowest = 0
                for i in range(1, fetch):
                    if best[i] < best[lowest]:
                        lowest = i
        for i in range(found, fetch):
            blocks[head, query, i] = -1


@compiled
def attend_fetched(
    queries: Floats, keys: Floats, values: Floats, places: Integers, gated: bool, output: Floats, weight: Floats,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Attention of rows start … stop - 1 over their own fetched blocks, with an online softmax.

    Args:
        queries: (kv_heads, queries, groups, head_dim), scaled and rotated
        keys, values: (places, block_size, head_dim)
        places: of each row's blocks (kv_heads, queries, fetch); -1 for none
        gated: the last key of a block is its landmark, which gates the block
        output: (kv_heads, queries, groups, head_dim), filled; sums to weight 1
        weight: (kv_heads, queries, groups), filled: logarithm of the softmax's denominator
    """
    size, dim = keys.shape[1], keys.shape[2]
    scores = np.empty(size, np.float32)
    part = np.empty(dim, np.float32)
    for row in range(start, stop):
        head, query = row // queries.shape[1], row % queries.shape[1]
        for group in range(queries.shape[2]):
            q = queries[head, query, group]
            total = output[head, query, group]
            total[:] = 0.0
            peak, mass = np.float32(-1e30), np.float32(0.0)
            for i in range(places.shape[2]):
                place = places[head, query, i]
                if place < 0:
                    continue
                text = size - 1 if gated else size
                highest = np.float32(-1e30)
                for j in range(size):
                    score = np.float32(0.0)
                    for d in range(dim):
                        score += q[d] * keys[place, j, d]
                    scores[j] = score
                    if j < text and score > highest:
                        highest = score
                inner = np.float32(0.0)
                part[:] = 0.0
                for j in range(text):
                    share = np.exp(scores[j] - highest)
                    inner += share
                    for d in range(dim):
                        part[d] += share * values[place, j, d]
                # A gated block weighs exp(landmark) however its own tokens score; another one the sum of theirs.
                level = scores[size - 1] if gated else highest
                scale = np.float32(1.0) / inner if gated else np.float32(1.0)
                added = np.float32(1.0) if gated else inner
                if level > peak:
                    fade = np.exp(peak - level)
                    mass *= fade
                    for d in range(dim):
                        total[d] *= fade
                    peak = level
                factor = np.exp(level - peak)
                mass += factor * added
                for d in range(dim):
                    total[d] += factor * scale * part[d]
            weight[head, query, group] = peak + np.log(mass) if mass > 0 else np.float32(-1e30)
            if mass > 0:
                for d in range(dim):
                    total[d] /= mass
