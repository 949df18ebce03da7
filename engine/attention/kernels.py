"""CPU kernels of attention over blocks: choose them, weigh the rest, attend. Compiled by Numba when first called.

They read blocks where they lie and copy nothing. Each works on a range of KV heads without the GIL, so several run at
once. Arrays are C-contiguous; all but the cache are fp32. Letters: H KV heads, T queries, G query heads per KV head, N
far blocks, K fetched blocks, M blocks that are read, B positions of a block, D channels, R pairs of channels that turn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from cache import compiled
from engine.linear_kernels import address, multiply

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
NOTHING = np.float32(-1e30)
"""Logarithm of a mass that is none."""
FOLD = 64
LEAST = -100.0
"""Power of two that counts as nothing: a share of it stays a normal number, which a CPU is quick with."""
SMALLEST = -126.0
"""That of the smallest normal number, for comparing shares."""
LOG2_E = np.float32(1.4426950408889634)
POWER = np.array(
    (1, 0.6931471806, 0.240226507, 0.05550410866, 0.009618129108, 0.001333355815, 0.0001540353039), np.float32
)
"""Taylor's coefficients of 2**x, which is right to 2e-7 for x in [-0.5, 0.5]."""


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
def exponentials(
    x: Floats, shift: float, found: Floats, exponents: NDArray[np.int32], least: float = LEAST
) -> np.float32:
    """exp(x - shift), at least 2**least, and their sum. Arrays of one length, in loops that become vectors."""
    for i in range(len(x)):
        power = max((x[i] - np.float32(shift)) * LOG2_E, np.float32(least))
        whole = np.rint(power)
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
def judge_moments(products: Floats, reach: float, log_size: float, first: int, last: int) -> None:
    """Products with mean and variance (2, H, T, G, N) become the logarithm of a block's mass, and its score."""
    step = np.float32(reach)
    for head in range(first, last):
        for query in range(products.shape[2]):
            for group in range(products.shape[3]):
                mean, variance = products[0, head, query, group], products[1, head, query, group]
                for n in range(len(mean)):
                    spread, middle = variance[n], mean[n]
                    variance[n] = middle + step * np.sqrt(spread)
                    mean[n] = middle + step * np.sqrt(spread + step * step) - step * step + np.float32(log_size)


@compiled
def choose(scores: Floats, sinks: int, ends: Integers, blocks: Integers, first: int, last: int) -> None:
    """The best blocks of heads first, …, last - 1: by the mean, over a KV head's queries, of their scores' softmax.

    Args:
        scores: (H, T, G, N)
        sinks: the first block that may be chosen
        ends: for each query the first one that may not be chosen any more (T,)
        blocks: (H, T, K), filled; -1 where there was nothing left
    """
    groups, most, fetch = scores.shape[2], scores.shape[3] - sinks, blocks.shape[2]
    whole, weights = np.zeros(most, np.float32), np.empty(most, np.float32)
    exponents, best = np.empty(most, np.int32), np.empty(fetch, np.float32)
    for head in range(first, last):
        for query in range(scores.shape[1]):
            count = max(0, ends[query] - sinks)
            wanted, chosen = scores[head, query, 0, sinks : sinks + count], blocks[head, query]
            if groups > 1:
                wanted = whole[:count]
                wanted[:] = 0.0
                for group in range(groups):
                    mine = scores[head, query, group, sinks : sinks + count]
                    total = np.float32(exponentials(mine, highest(mine), weights[:count], exponents[:count], SMALLEST))
                    for n in range(count):
                        wanted[n] += weights[n] / total
            found, lowest = min(fetch, count), 0
            for n in range(found):
                best[n], chosen[n] = wanted[n], n + sinks
                if best[n] < best[lowest]:
                    lowest = n
            chosen[found:] = -1
            start = found
            while found and start < count:
                end, better = min(start + FOLD, count), 0
                for n in range(start, end):  # most stretches hold nothing better, and vectors tell so at once
                    better += wanted[n] > best[lowest]
                if better:
                    for n in range(start, end):
                        if wanted[n] > best[lowest]:
                            best[lowest], chosen[lowest] = wanted[n], n + sinks
                            for i in range(fetch):
                                if best[i] < best[lowest]:
                                    lowest = i
                start = end


@compiled
def weigh_rest(
    masses: Floats, sinks: int, ends: Integers, blocks: Integers, weight: Floats, first: int, last: int
) -> None:
    """Shares of the blocks that are not read among themselves, and the logarithm of the mass of all of them.

    Args:
        masses: their logarithms (H, T, G, N), replaced by the shares
        sinks, ends, blocks: as in `choose`
        weight: (H, T, G), filled
    """
    exponents = np.empty(masses.shape[3], np.int32)
    for head in range(first, last):
        for query in range(masses.shape[1]):
            chosen, end = blocks[head, query], max(sinks, ends[query])
            for group in range(masses.shape[2]):
                mass = masses[head, query, group]
                mass[:sinks] = 0.0
                mass[end:] = 0.0
                for k in range(len(chosen)):
                    if chosen[k] >= 0:
                        mass[chosen[k]] = NOTHING
                rest = mass[sinks:end]
                peak = highest(rest)
                if peak <= NOTHING:
                    mass[:] = 0.0
                    weight[head, query, group] = NOTHING
                    continue
                total = np.float32(exponentials(rest, peak, rest, exponents[: end - sinks]))
                for k in range(len(chosen)):
                    if chosen[k] >= 0:
                        mass[chosen[k]] = 0.0
                for n in range(len(rest)):
                    rest[n] /= total
                weight[head, query, group] = peak + np.log(total)


@compiled
def turn_to(query: Floats, number: int, turn: Floats, starts: Floats, stride: int, apart: int, turned: Floats) -> None:
    """Query heads (G, D) as they see a block: rotated by the distance from its start; see `attend`."""
    turned[:] = query
    for i in range(turn.shape[1]):
        cos = turn[0, i] * starts[0, number, i] + turn[1, i] * starts[1, number, i]
        sin = turn[1, i] * starts[0, number, i] - turn[0, i] * starts[1, number, i]
        for group in range(len(query)):
            one, other = turned[group, i * stride], turned[group, i * stride + apart]
            turned[group, i * stride] = one * cos - other * sin
            turned[group, i * stride + apart] = other * cos + one * sin


@compiled
def gate(scores: Floats, size: int, own: int) -> None:
    """Grouped softmax as a bias on scores (G, M * B): each block weighs what its landmark says, but the own one."""
    shares, exponents = np.empty(size - 1, np.float32), np.empty(size - 1, np.int32)
    for group in range(scores.shape[0]):
        for m in range(scores.shape[1] // size):
            block = scores[group, m * size : (m + 1) * size]
            if m != own:
                text = block[: size - 1]
                peak = highest(text)
                shift = block[size - 1] - peak - np.log(np.float32(exponentials(text, peak, shares, exponents)))
                for j in range(size - 1):
                    text[j] += shift
            block[size - 1] = NOTHING


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
    turned, part = np.empty((groups, dim), np.float32), np.empty(dim, np.float32)
    scores = np.empty((groups, read * size), np.float32)
    exponents = np.empty(read * size, np.int32)
    to_apart = 4 * read * size
    for head in range(first, last):
        for query in range(len(positions)):
            position, result = positions[query], output[head, query]
            own_block, own = position // size, -1
            for m in range(read):
                place, number = places[head, query, m], numbers[head, query, m]
                if place < 0:
                    scores[:, m * size : (m + 1) * size] = NOTHING
                    continue
                distant = number < own_block - recent
                if bounded and distant:
                    turned[:] = far[head, query]
                else:
                    turn_to(queries[head, query], number, turns[query], starts, stride, apart, turned)
                to = address(scores) + 4 * m * size
                multiply(keys, address(turned), 4 * dim, to, to_apart, groups, place * size, (place + 1) * size)
                if number == own_block:
                    own = m
                    scores[:, m * size + position % size + 1 : (m + 1) * size] = NOTHING
                if not distant:
                    hidden = min(size, max(0, position - window + 1 - number * size))
                    scores[:, m * size : m * size + hidden] = NOTHING
            if gated:
                gate(scores, size, own)
            for group in range(groups):
                mine, estimated = scores[group], rest_weight[head, query, group]
                peak = max(np.float32(highest(mine)), estimated)
                total = np.float32(exponentials(mine, peak, mine, exponents))
                share = np.exp(estimated - peak)
                total += share
                for i in range(len(mine)):
                    mine[i] /= total
                for d in range(dim):
                    result[group, d] *= share / total
            for m in range(read):
                place = places[head, query, m]
                if place < 0:
                    continue
                for j in range(size):
                    for d in range(dim):
                        part[d] = widen(values[place * size + j, d])
                    for group in range(groups):
                        weight = scores[group, m * size + j]
                        for d in range(dim):
                            result[group, d] += weight * part[d]
