"""CPU kernels for one query of a session: choose blocks, weigh the rest, attend. Compiled by Numba when first called.

They read blocks where they lie and copy nothing. Each works on a range of KV heads without the GIL, so several run at
once. Arrays are C-contiguous; all but the cache are fp32. Letters: H KV heads, G query heads per KV head, N far blocks,
K fetched blocks, M blocks that are read, B positions of a block, D channels, R pairs of channels that are turned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from cache import compiled

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
NOTHING = np.float32(-1e30)
"""Logarithm of a mass that is none."""
FOLD = 64
LOG2_E = np.float32(1.4426950408889634)
POWER = np.array((1.0, 0.6931471805, 0.2402264791, 0.0555033157, 0.0096180165, 0.0013398874, 0.0001546961), np.float32)
"""2**x for x in [0, 1): a polynomial that is right to 1e-7."""


@intrinsic  # type: ignore[untyped-decorator]
def from_bfloat16(context: Any, bits: Any) -> Any:
    """A bf16 number, given as its bits: the upper half of an fp32 one."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        wide = b.shl(b.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return b.bitcast(wide, ir.FloatType())

    return types.float32(types.uint16), generate


def widen(number: Any) -> Any:
    """A cached number as fp32."""


@overload(widen)  # type: ignore[untyped-decorator]
def _widen(number: Any) -> Any:
    def wide(number: Any) -> Any:
        return from_bfloat16(number)

    def same(number: Any) -> Any:
        return np.float32(number)

    return wide if number == types.uint16 else same


@compiled
def exponentials(x: Floats, shift: float, found: Floats, exponents: NDArray[np.int32]) -> np.float32:
    """exp(x - shift), and their sum; arrays of one length. Loops that a compiler makes vectors of."""
    for i in range(len(x)):
        power = max((x[i] - np.float32(shift)) * LOG2_E, np.float32(-126.0))
        whole = np.floor(power)
        part = power - whole
        value = POWER[6]
        for degree in range(5, -1, -1):
            value = POWER[degree] + part * value
        found[i] = value
        exponents[i] = np.int32(whole) << 23
    bits = found.view(np.int32)
    for i in range(len(x)):
        bits[i] += exponents[i]
    total = np.float32(0.0)
    for i in range(len(x)):
        total += found[i]
    return total


@compiled
def highest(x: Floats) -> np.float32:
    """The largest number, found in lanes: Numba makes no vectors of a maximum over a loop."""
    lanes = np.full(FOLD, NOTHING, np.float32)
    whole = len(x) // FOLD * FOLD
    for start in range(0, whole, FOLD):
        for lane in range(FOLD):
            lanes[lane] = max(lanes[lane], x[start + lane])
    for i in range(whole, len(x)):
        lanes[0] = max(lanes[0], x[i])
    best = np.float32(lanes[0])
    for lane in range(1, FOLD):
        best = max(best, lanes[lane])
    return best


@compiled
def judge_moments(products: Floats, reach: float, log_size: float, head: int) -> None:
    """Products with mean and variance (2, H, G, N) become the logarithm of a block's mass, and its score."""
    step = np.float32(reach)
    for group in range(products.shape[2]):
        mean, variance = products[0, head, group], products[1, head, group]
        for n in range(len(mean)):
            spread, middle = variance[n], mean[n]
            variance[n] = middle + step * np.sqrt(spread)
            mean[n] = middle + step * np.sqrt(spread + step * step) - step * step + np.float32(log_size)


@compiled
def choose(scores: Floats, sinks: int, blocks: Integers, first: int, last: int) -> None:
    """The best blocks of heads first, …, last - 1: by the mean, over a head's queries, of the softmax of their scores.

    Args:
        scores: (H, G, N)
        sinks: the first block that may be chosen
        blocks: (H, K), filled; -1 where there was nothing left
    """
    groups, count, fetch = scores.shape[1], scores.shape[2] - sinks, blocks.shape[1]
    wanted, weights = np.zeros(count, np.float32), np.empty(count, np.float32)
    exponents, best = np.empty(count, np.int32), np.empty(fetch, np.float32)
    for head in range(first, last):
        if groups == 1:
            wanted[:] = scores[head, 0, sinks:]
        else:
            wanted[:] = 0.0
            for group in range(groups):
                mine = scores[head, group, sinks:]
                total = np.float32(exponentials(mine, highest(mine), weights, exponents))
                for n in range(count):
                    wanted[n] += weights[n] / total
        found, lowest = 0, 0
        for n in range(count):
            if found < fetch:
                best[found], blocks[head, found] = wanted[n], n + sinks
                found += 1
            elif wanted[n] > best[lowest]:
                best[lowest], blocks[head, lowest] = wanted[n], n + sinks
            else:
                continue
            if found == fetch:
                lowest = 0
                for i in range(1, fetch):
                    if best[i] < best[lowest]:
                        lowest = i
        blocks[head, found:] = -1


@compiled
def weigh_rest(masses: Floats, sinks: int, blocks: Integers, weight: Floats, first: int, last: int) -> None:
    """Shares of the blocks that are not read among themselves, and the logarithm of the mass of all of them.

    Args:
        masses: their logarithms (H, G, N), replaced by the shares
        blocks: what is read of them (H, K), -1 for none
        weight: (H, G), filled
    """
    count = masses.shape[2]
    exponents = np.empty(count - sinks, np.int32)
    for head in range(first, last):
        for group in range(masses.shape[1]):
            mass = masses[head, group]
            mass[:sinks] = 0.0
            for k in range(blocks.shape[1]):
                if blocks[head, k] >= 0:
                    mass[blocks[head, k]] = NOTHING
            rest = mass[sinks:]
            peak = highest(rest)
            if peak <= NOTHING:
                mass[:] = 0.0
                weight[head, group] = NOTHING
                continue
            total = np.float32(exponentials(rest, peak, rest, exponents))
            for k in range(blocks.shape[1]):
                if blocks[head, k] >= 0:
                    mass[blocks[head, k]] = 0.0
            for n in range(len(rest)):
                rest[n] /= total
            weight[head, group] = peak + np.log(total)


@compiled
def attend(
    queries: Floats, far: Floats, keys: Any, values: Any, places: Integers, numbers: Integers, turn: Floats,
    starts: Floats, stride: int, apart: int, gated: bool, bounded: bool, near: int, position: int, oldest: int,
    rest_weight: Floats, output: Floats, first: int, last: int,
) -> None:  # fmt: skip
    """One softmax over blocks and what is estimated of others, for heads first, …, last - 1.

    Args:
        queries: unrotated and scaled (H, G, D)
        far: as bounded far blocks see them (H, G, D)
        keys, values: (places, B, D), fp32 or the bits of bf16; keys relative to their block
        places: of the blocks that are read (H, M), -1 for none
        numbers: of these blocks in the session (H, M)
        turn: cosine and sine of the query's position (2, R)
        starts: cosine and sine of the first position of each block of the session (2, blocks, R)
        stride, apart: channels i * stride and i * stride + apart make pair i
        gated: the last key of each block but the query's own is a landmark that gates the block
        bounded: far blocks, those before block `near`, are seen from one distance
        position, oldest: the query's, and the first one that it may read in near blocks
        rest_weight: logarithm of the mass of what is estimated (H, G)
        output: (H, G, D): what is estimated; replaced by the result
    """
    groups, dim, size, pairs = queries.shape[1], queries.shape[2], keys.shape[1], turn.shape[1]
    turned, block = np.empty((groups, dim), np.float32), np.empty((size, dim), np.float32)
    scores, part = np.empty(size, np.float32), np.empty(dim, np.float32)
    shares = np.empty((groups, size), np.float32)
    levels, scales = np.empty(groups, np.float32), np.empty(groups, np.float32)
    peaks, masses = np.empty(groups, np.float32), np.empty(groups, np.float32)
    for head in range(first, last):
        for group in range(groups):
            peaks[group] = rest_weight[head, group]
            masses[group] = 1.0 if rest_weight[head, group] > NOTHING else 0.0
        for m in range(places.shape[1]):
            place, number = places[head, m], numbers[head, m]
            if place < 0:
                continue
            own = number == position // size
            begin = max(0, oldest - number * size) if number >= near else 0
            end = position % size + 1 if own else size
            if gated:
                end = min(end, size - 1)
            if bounded and number < near:
                turned[:] = far[head]
            else:
                turned[:] = queries[head]
                for i in range(pairs):
                    cos = turn[0, i] * starts[0, number, i] + turn[1, i] * starts[1, number, i]
                    sin = turn[1, i] * starts[0, number, i] - turn[0, i] * starts[1, number, i]
                    for group in range(groups):
                        one, other = turned[group, i * stride], turned[group, i * stride + apart]
                        turned[group, i * stride] = one * cos - other * sin
                        turned[group, i * stride + apart] = other * cos + one * sin
            for j in range(size):
                for d in range(dim):
                    block[j, d] = widen(keys[place, j, d])
            for group in range(groups):
                level = NOTHING
                for j in range(begin, end):
                    score = np.float32(0.0)
                    for d in range(dim):
                        score += turned[group, d] * block[j, d]
                    scores[j] = score
                    level = max(level, score)
                mass = np.float32(0.0)
                for j in range(begin, end):
                    shares[group, j] = np.exp(scores[j] - level)
                    mass += shares[group, j]
                scale = np.float32(1.0)
                if gated and not own:  # it weighs what its landmark says, however its own tokens score
                    level = np.float32(0.0)
                    for d in range(dim):
                        level += turned[group, d] * block[size - 1, d]
                    scale, mass = np.float32(1.0) / mass, np.float32(1.0)
                if level > peaks[group]:
                    fade = np.exp(peaks[group] - level)
                    masses[group] *= fade
                    for d in range(dim):
                        output[head, group, d] *= fade
                    peaks[group] = level
                factor = np.exp(level - peaks[group])
                masses[group] += factor * mass
                levels[group], scales[group] = level, factor * scale
            for j in range(begin, end):
                for d in range(dim):
                    part[d] = widen(values[place, j, d])
                for group in range(groups):
                    weight = shares[group, j] * scales[group]
                    for d in range(dim):
                        output[head, group, d] += weight * part[d]
        for group in range(groups):
            for d in range(dim):
                output[head, group, d] /= masses[group]
