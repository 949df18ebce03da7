"""CPU kernels for the pairs of blocks that are opened for a query: which ones, where they lie, what is read of them.

Compiled by Numba when first called. Letters in shapes as in `cache.section_kernels`.
"""

from __future__ import annotations

import math

import numpy as np

from cache.best_kernels import best_of
from cache.choice_kernels import best_blocks
from cache.compiling import compiled
from cache.four_bits import LANES
from cache.lane_kernels import CHUNK, NOTHING, address, prefetch_behind
from cache.opened import WIDE, record_bytes
from cache.pair_kernels import (
    AHEAD,
    HEADS,
    HIDDEN,
    NARROW,
    RECORD,
    open_narrow,
    open_wide,
    pool_opened,
    share_opened,
    sum_opened,
)
from cache.sections import LEAST_OPENED, OPENED, PAIR, PAIRS, SECTION
from cache.walk_kernels import Floats, Integers, Small, Starts

HIGH, ABOVE, LOW = 40.0, 30.0, 64.0
"""Powers of two: masses are told beside one that is at most so much below the largest of them, and so much above it;
those so much below the largest one count as equal."""


record_length = compiled(record_bytes)


@compiled
def two_to(power: float) -> np.float32:
    """2**power of a whole number, 0 if it is too small."""
    return np.float32(0.0) if power < -126 else np.float32(math.ldexp(1.0, int(power)))


@compiled
def whole_sections(sinks: int, end: int) -> tuple[int, int]:
    """The first section between the sinks and an end that is whole, and the first one behind them that is not."""
    return (sinks + SECTION - 1) // SECTION, end // SECTION


@compiled
def edges(sinks: int, end: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last blocks, each first, …, stop - 1, that no whole section between the sinks and an end holds."""
    first, last = whole_sections(sinks, end)
    return (sinks, min(SECTION * first, end)), (SECTION * max(first, last), end)


@compiled
def list_pairs(wanted: Floats, most: float, sinks: int, end: int, chosen: int, pairs: Integers) -> int:
    """The pairs that are opened, in rising order: the best ones of whole sections, and all others.

    Args:
        wanted: of pairs (R,), none below 0; written over
        most: of them all together
        chosen: blocks to be chosen of them
        pairs: filled

    Returns:
        How many there are.
    """
    front, back = edges(sinks, end)
    first, last = whole_sections(sinks, end)
    found = 0
    for pair in range(front[0] // PAIR, (front[1] + PAIR - 1) // PAIR):
        pairs[found] = pair
        found += 1
    if last > first:
        wanted[: PAIRS * first] = np.float32(-1.0)
        found += best_of(wanted, PAIRS * last, max(LEAST_OPENED, OPENED * chosen), most, pairs[found:])
    for pair in range(back[0] // PAIR, (back[1] + PAIR - 1) // PAIR):
        pairs[found] = pair
        found += 1
    return found


@compiled
def room_for(chosen: int) -> int:
    """Pairs that are opened, at most, and as many as are asked for ahead."""
    return max(LEAST_OPENED, OPENED * chosen) + 2 * PAIRS + AHEAD + 1


@compiled
def find_pairs(
    table: Integers, head: int, channels: int, pairs: Integers, count: int, sinks: int, end: int, hiding: Floats,
    lying: Integers,
) -> None:  # fmt: skip
    """Where pairs lie (P, LYING), filled as `opener` takes it, and what lies there is asked for.

    Args:
        table: `BlockIndex.opened_table`
        hiding: what is added to the powers of a pair's blocks: of none, the first one, the second one, both (4, 2)
    """
    segment, start, stop, records, length = -1, 0, 0, 0, record_length(channels)
    for place in range(count + AHEAD + 1):
        pair = pairs[min(place, count - 1)]
        block = PAIR * pair
        while block >= stop:
            segment, start = segment + 1, stop
            stop += table[segment, 1]
            records = table[segment, 2] + (head * table[segment, 0] - start) // PAIR * length
        lying[place, RECORD] = records + pair * length
        hidden = 3 if place >= count else int(block < sinks) + 2 * int(block + 1 >= end)
        lying[place, HIDDEN] = address(hiding) + 4 * PAIR * hidden
        prefetch_behind(lying[place, RECORD], length)


@compiled
def weigh_opened(
    numbers: Small, starts: Starts, sizes: Floats, told: Floats, lying: Integers, count: int, steps: int,
    reach: float, shift: float, beside: Floats, masses: Floats, best: Floats,
) -> None:  # fmt: skip
    """Masses (F, steps + 1, 16) of two pairs' blocks each, for fours of one query's heads, beside a power of two.

    Args:
        numbers, starts, sizes: the query's heads (4 F, channels) in 8 bits, nothing for those that are none
        told: of the heads, by `look_at_profile` (G,)
        lying: by `find_pairs`, of `count` pairs
        reach, shift: as `opener` takes them
        beside: powers of which each last one is present (G, R / 64 + 1)
        best: (G,), filled: the largest power, far above which no mass means anything
    """
    groups, references, usual = len(best), np.empty(HEADS, np.float32), np.zeros(HEADS, np.float32)
    for four in range(len(masses)):
        first = HEADS * four
        asked = address(numbers) + first * numbers.shape[1], numbers.shape[1], address(starts) + 4 * first
        to = address(masses) + 4 * LANES * (steps + 1) * four
        references[:] = -NOTHING  # beside that nothing becomes too large, of heads that are none
        for head in range(min(HEADS, groups - first)):
            references[head], usual[head] = beside[first + head, -1], told[first + head]
        slices = numbers.shape[1] // WIDE
        beginning = address(lying), 2 * steps, slices, *asked, address(sizes) + 4 * first
        ending = address(usual), address(references), np.float32(reach), np.float32(shift), to
        if slices == NARROW:
            open_narrow(*beginning, *ending)
        else:
            open_wide(*beginning, *ending)
        for head in range(min(HEADS, groups - first)):
            largest = masses[four, steps, head]
            for block in range(1, LANES // HEADS):
                largest = max(largest, masses[four, steps, HEADS * block + head])
            best[first + head] = largest


@compiled
def hide_blocks(shares: Floats, place: int, block: int, sinks: int, end: int) -> None:
    """Of the shares of an opened pair (PAIR * P,) hide those of blocks that may not be chosen."""
    for inside in range(PAIR):
        if block + inside < sinks or block + inside >= end:
            shares[PAIR * place + inside] = np.float32(-1.0)


@compiled
def choose_opened(
    masses: Floats, steps: int, pairs: Integers, count: int, sinks: int, end: int, left: Floats, least: Floats,
    blocks: Integers,
) -> None:  # fmt: skip
    """Choose one query's blocks by the mean of its query heads' shares, and make nothing of their masses.

    Args:
        masses: by `weigh_opened`
        pairs: that were opened, `count` of them
        left: masses of all that was not opened (G,)
        least: what counts at least (G,)
        blocks: (K,), filled, the best ones first; -1 where there was nothing left
    """
    groups, most = len(left), PAIR * count
    shares, told = np.zeros(2 * PAIR * steps + CHUNK, np.float32), np.empty((3, HEADS), np.float32)
    for four in range(len(masses)):
        of_four = address(masses) + 4 * LANES * (steps + 1) * four
        sum_opened(of_four, steps, address(told))
        for head in range(HEADS):
            row = HEADS * four + head
            told[1, head] = np.float32(1.0) / (left[row] + told[0, head]) if row < groups else np.float32(0.0)
            told[2, head] = least[row] * told[1, head] if row < groups else np.float32(0.0)
        share_opened(of_four, address(told[1]), address(told[2]), address(shares), steps)
    first, last = whole_sections(sinks, end)
    place = 0
    while place < count and not first <= pairs[place] // PAIRS < last:
        hide_blocks(shares, place, PAIR * pairs[place], sinks, end)
        place += 1
    behind = count - 1
    while behind > place and not first <= pairs[behind] // PAIRS < last:
        hide_blocks(shares, behind, PAIR * pairs[behind], sinks, end)
        behind -= 1
    found = np.empty(min(len(blocks), most), np.int64)
    few = best_of(shares, most, len(found), groups, found)
    wanted, order = np.empty(few + CHUNK, np.float32), np.empty(few, np.int64)
    for place in range(few):
        wanted[place] = shares[found[place]]
    best_blocks(wanted, 0, few, np.empty(few, np.float32), order)
    blocks[few:] = -1
    for place in range(few):
        entry = found[order[place]]
        blocks[place] = PAIR * pairs[entry // PAIR] + entry % PAIR
        tile, inside = entry // (2 * PAIR), HEADS * (entry % (2 * PAIR))
        for four in range(len(masses)):
            for head in range(HEADS):
                masses[four, tile, inside + head] = np.float32(0.0)


@compiled
def give_back(
    masses: Floats, pairs: Integers, count: int, sinks: int, end: int, least: Floats, pooled: Floats, apart: Floats,
    left: Floats,
) -> None:  # fmt: skip
    """Add masses of blocks that were opened, and not chosen, to those of their sections and of all that is not read.

    Args:
        masses, pairs, count, least: as in `choose_opened`; what is less than the least becomes nothing
        pooled: of sections (G, R)
        apart: of blocks at the front and at the back edge, which no section holds (G, 2, SECTION), filled
        left: (G,)
    """
    apart[:] = np.float32(0.0)
    first, last = whole_sections(sinks, end)
    starts = sinks, SECTION * max(first, last)
    groups, steps = len(left), masses.shape[1] - 1
    sums, totals, mine = np.empty((PAIR * steps, HEADS), np.float32), np.zeros((2, HEADS), np.float32), 0
    for four in range(len(masses)):
        heads = min(HEADS, groups - HEADS * four)
        for head in range(heads):
            totals[0, head], totals[1, head] = left[HEADS * four + head], least[HEADS * four + head]
        pool_opened(address(masses[four]), steps, address(totals[1]), address(sums), address(totals))
        for place in range(count):
            pair = pairs[place]
            section = pair // PAIRS
            if first <= section < last:
                for head in range(heads):
                    pooled[HEADS * four + head, section] += sums[place, head]
                continue
            for block in range(max(sinks, PAIR * pair), min(end, PAIR * pair + PAIR)):
                side, mine = int(block >= starts[1]), HEADS * (PAIR * (place % 2) + block - PAIR * pair)
                for head in range(heads):
                    mass = masses[four, place // 2, mine + head]
                    apart[HEADS * four + head, side, block - starts[side]] = mass if mass >= totals[1, head] else 0.0
        for head in range(heads):
            left[HEADS * four + head] = totals[0, head]
