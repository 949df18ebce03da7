"""What attention does with the blocks that a query reads, written for LLVM itself: multiply its heads with their keys,
weigh them, and add up values. Compiled by Numba when first called.

A vector holds 16 channels of one key, so each product ends in a sum over lanes: 16 products are finished together, by
halves (`lane_sums`), so 15 sums of vectors make 16 numbers. Of bf16, neighbouring numbers are one word: shifted up it
is the lower one as fp32, and a mask leaves the upper one. So 32 channels are two vectors, of even and of odd ones, as
queries have them (`turn_kernels`). What is read is widened once for all query heads, and sums stay in registers: those
of values over all blocks.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache import compiled, kernels
from engine.attention.turn_kernels import PAIR, together
from engine.linear_kernels import ROOMY, lane_sums, over_each, widened
from engine.short_kernels import half_of

lanes = kernels("lane")
I32, I64, F32, LANES, REALS, WHOLES = lanes.I32, lanes.I64, lanes.F32, lanes.LANES, lanes.REALS, lanes.WHOLES
at, load, store, spread, plus_product = lanes.at, lanes.load, lanes.store, lanes.spread, lanes.plus_product
WIDE = 4
"""Vectors of channels whose values are added up together."""
SUMS = 8 if ROOMY else 4
"""Of 16 lanes, so many are under way at once at least: a sum has to wait for the one before it."""


def both_halves(builder: Any, address: Any) -> tuple[Any, Any]:
    """Even and odd ones of 32 bf16 numbers as fp32."""
    words = load(builder, address, WHOLES, 2)
    even, odd = (builder.bitcast(half_of(builder, words, upper), REALS) for upper in (False, True))
    return even, odd


def ask_for(builder: Any, here: Any, ahead: Any, beyond: Any, count: int) -> None:
    """Ask for so many bytes of the next block, into the nearest cache, and of the one after it, into that behind."""
    for line in range(0, count, lanes.LINE):
        place = builder.add(here, I64(line))
        lanes.ask(builder, builder.add(place, ahead))
        lanes.ask(builder, builder.add(place, beyond), nearest=False)


# -- keys ---------------------------------------------------------------------------------------------------------


def score_kernel(tall: int, groups: int) -> Any:
    """Products of `tall` keys with `groups` query heads.

    The result takes the cache for its type; the first key's address; how many bytes ahead of it others lie, to be asked
    for (`ask_for`); channels; addresses of the heads (G, D), as `parted` gave, and of the first product; and bytes to
    the next head's.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def score(
        context: Any, cache: Any, start: Any, ahead: Any, beyond: Any, dim: Any, queries: Any, to: Any, to_apart: Any
    ) -> Any:
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            _, start, ahead, beyond, dim, queries, to, to_apart = arguments
            kind = signature.args[0].dtype
            width = kind.bitwidth // 8
            by_pairs = width == 2
            keys = [b.add(start, b.mul(dim, I64(width * i))) for i in range(tall)]
            heads = [b.add(queries, b.mul(dim, I64(4 * group))) for group in range(groups)]
            sums = [[cgutils.alloca_once_value(b, lanes.same(REALS, 0.0)) for _ in heads] for _ in keys]

            def add(vector: Any, mine: list[Any], numbers: list[Any]) -> None:
                x = [load(b, at(b, head, vector), REALS) for head in heads]
                for totals, number in zip(mine, numbers, strict=True):
                    for total, factor in zip(totals, x, strict=True):
                        b.store(plus_product(b, b.load(total), number, factor), total)

            at_once = tall if ROOMY else min(tall, max(1, 4 // groups))
            for begin in range(0, tall, at_once):
                few, mine = keys[begin : begin + at_once], sums[begin : begin + at_once]
                with cgutils.for_range(b, b.sdiv(dim, I64(PAIR if by_pairs else LANES))) as loop:
                    places = [b.add(key, b.mul(loop.index, I64(lanes.LINE))) for key in few]
                    for place in places:
                        ask_for(b, place, ahead, beyond, lanes.LINE)
                    if by_pairs:
                        halves = [both_halves(b, place) for place in places]
                        vector = b.mul(loop.index, I64(2))
                        add(vector, mine, [even for even, _ in halves])
                        add(b.add(vector, I64(1)), mine, [odd for _, odd in halves])
                    else:
                        add(loop.index, mine, [load(b, place, REALS) for place in places])
                if by_pairs:
                    with b.if_then(b.icmp_signed("!=", b.and_(dim, I64(LANES)), I64(0))):
                        vector = b.sdiv(b.sub(dim, I64(LANES)), I64(LANES))
                        add(vector, mine, [widened(b, at(b, key, vector, width), kind) for key in few])
            totals = lane_sums(b, [b.load(sums[i][group]) for group in range(groups) for i in range(tall)])
            for group in range(groups):
                mask = ir.Constant(ir.VectorType(I32, tall), list(range(group * tall, (group + 1) * tall)))
                store(b, b.shuffle_vector(totals, totals, mask), b.add(to, b.mul(to_apart, I64(group))))
            return context.get_dummy_value()

        return types.void(cache, *[types.intp] * 7), generate

    return score


tall_four, tall_two, tall_one = (score_kernel(LANES // groups, groups) for groups in (4, 2, 1))
flat_four, flat_two, flat_one = (score_kernel(1, groups) for groups in (4, 2, 1))


@compiled
def score_block(
    cache: Any, start: int, ahead: int, beyond: int, size: int, dim: int, queries: int, groups: int, to: int,
    to_apart: int,
) -> None:  # fmt: skip
    """Products of a block's keys with query heads.

    Args:
        cache: for its type, fp32 or the bits of bf16
        start: address of the first key
        ahead, beyond: bytes from there to the block that comes next, and to the one after it
        queries: address of the heads (G, D), as `parted` gave
        to, to_apart: address of the first head's products (B,), and bytes to the next one's
    """
    group, row = 0, cache.itemsize * dim
    while group < groups:
        asked, there, j = queries + 4 * dim * group, to + to_apart * group, 0
        few = 4 if groups - group >= 4 else 2 if groups - group >= 2 else 1
        tall = LANES // few
        while j < size:
            here, place = start + j * row, there + 4 * j
            if size - j >= tall:
                if few == 4:
                    tall_four(cache, here, ahead, beyond, dim, asked, place, to_apart)
                elif few == 2:
                    tall_two(cache, here, ahead, beyond, dim, asked, place, to_apart)
                else:
                    tall_one(cache, here, ahead, beyond, dim, asked, place, to_apart)
                j += tall
            else:
                if few == 4:
                    flat_four(cache, here, ahead, beyond, dim, asked, place, to_apart)
                elif few == 2:
                    flat_two(cache, here, ahead, beyond, dim, asked, place, to_apart)
                else:
                    flat_one(cache, here, ahead, beyond, dim, asked, place, to_apart)
                j += 1
        group += few


# -- weights ------------------------------------------------------------------------------------------------------


@intrinsic  # type: ignore[untyped-decorator]
def highest_each(context: Any, scores: Any, steps: Any, to: Any) -> Any:
    """The largest of 16 * steps scores, for each of 16 blocks; takes addresses of (16, 16 * steps) and of (16,)."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        scores, steps, to = arguments
        starts = [at(b, scores, b.mul(steps, I64(i))) for i in range(LANES)]
        best = [cgutils.alloca_once_value(b, lanes.same(REALS, lanes.NOTHING)) for _ in starts]
        with cgutils.for_range(b, steps) as loop:
            for start, most in zip(starts, best, strict=True):
                b.store(lanes.larger(b, load(b, at(b, start, loop.index), REALS), b.load(most)), most)
        store(b, over_each(b, [b.load(most) for most in best], lambda x, y: lanes.larger(b, x, y)), to)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), generate


@intrinsic  # type: ignore[untyped-decorator]
def exponentials_each(context: Any, scores: Any, steps: Any, shifts: Any, to: Any) -> Any:
    """`exponentials` in place of 16 * steps scores, and their sum, for each of 16 blocks with a shift of its own."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        scores, steps, shifts, to = arguments
        sums = []
        for i in range(LANES):
            start = at(b, scores, b.mul(steps, I64(i)))
            shift = spread(b, load(b, b.add(shifts, I64(4 * i)), F32), REALS)
            total = cgutils.alloca_once_value(b, lanes.same(REALS, 0.0))
            with cgutils.for_range(b, steps) as loop:
                here = at(b, start, loop.index)
                power = b.fmul(b.fsub(load(b, here, REALS), shift), lanes.same(REALS, lanes.LOG2_E))
                value = lanes.power_of_two(b, power)
                store(b, value, here)
                b.store(b.fadd(b.load(total), value), total)
            sums.append(b.load(total))
        store(b, lane_sums(b, sums), to)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@intrinsic  # type: ignore[untyped-decorator]
def scale(context: Any, x: Any, factor: Any, steps: Any) -> Any:
    """16 * steps numbers times a factor, at least 2**LEAST."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, factor, steps = arguments
        factor = spread(b, factor, REALS)
        with cgutils.for_range(b, steps) as loop:
            here = at(b, x, loop.index)
            store(b, lanes.larger(b, b.fmul(load(b, here, REALS), factor), lanes.same(REALS, 2.0**lanes.LEAST)), here)
        return context.get_dummy_value()

    return types.void(types.intp, types.float32, types.intp), generate


# -- values -------------------------------------------------------------------------------------------------------


def sum_kernel(groups: int, vectors: int) -> Any:
    """Sums over blocks of values by weights, of `groups` query heads and 16 * vectors channels.

    The result takes the cache for its type; positions of a block; channels of a value; where the addresses of blocks
    lie, two more than are read, how many are, and which of their channels' bytes is the first; where the first head's
    weights lie, of which each block has so many vectors; bytes to the next head's; and addresses of shares (G, 2) and
    results (G, D): a result becomes (result * first share + sum) * second share.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def add(
        context: Any, cache: Any, size: Any, dim: Any, blocks: Any, count: Any, channel: Any, weights: Any, steps: Any,
        weights_apart: Any, shares: Any, results: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            _, size, dim, blocks, count, channel, weights, steps, weights_apart, shares, results = arguments
            kind = signature.args[0].dtype
            width = kind.bitwidth // 8
            by_pairs = width == 2 and vectors > 1
            row_bytes = b.mul(dim, I64(width))
            parts = min(2, max(1, SUMS // (groups * vectors)))
            tile = [(group, i) for group in range(groups) for i in range(vectors)]
            sums = [[cgutils.alloca_once_value(b, lanes.same(REALS, 0.0)) for _ in tile] for _ in range(parts)]

            def block(index: Any) -> Any:
                return b.add(load(b, b.add(blocks, b.mul(index, I64(8))), I64, 8), channel)

            def add_row(totals: list[Any], row: Any, factors: Any) -> None:
                ask_for(b, row, ahead, beyond, vectors * LANES * width)
                if by_pairs:
                    pairs = [both_halves(b, b.add(row, I64(2 * PAIR * i))) for i in range(vectors // 2)]
                    numbers = [half for pair in pairs for half in pair]
                else:
                    numbers = [widened(b, at(b, row, I64(i), width), kind) for i in range(vectors)]
                for group in range(groups):
                    place = b.add(factors, b.mul(weights_apart, I64(group)))
                    factor = spread(b, load(b, place, F32), REALS)
                    for i, number in enumerate(numbers):
                        total = totals[group * vectors + i]
                        b.store(plus_product(b, b.load(total), factor, number), total)

            with cgutils.for_range(b, count) as loop:
                here, factors = block(loop.index), at(b, weights, b.mul(loop.index, steps))
                ahead, beyond = (b.sub(block(b.add(loop.index, I64(i))), here) for i in (1, 2))
                with cgutils.for_range(b, b.sdiv(size, I64(parts))) as rows:
                    for part, totals in enumerate(sums):
                        j = b.add(b.mul(rows.index, I64(parts)), I64(part))
                        add_row(totals, b.add(here, b.mul(j, row_bytes)), b.add(factors, b.mul(j, I64(4))))
                if parts == 2:
                    with b.if_then(b.trunc(size, ir.IntType(1))):
                        j = b.sub(size, I64(1))
                        add_row(sums[0], b.add(here, b.mul(j, row_bytes)), b.add(factors, b.mul(j, I64(4))))
            totals = [b.load(total) for total in sums[0]]
            if parts == 2:
                totals = [b.fadd(total, b.load(other)) for total, other in zip(totals, sums[1], strict=True)]
            if by_pairs:
                couples = zip(totals[::2], totals[1::2], strict=True)
                totals = [vector for even, odd in couples for vector in together(b, even, odd)]
            for (group, i), total in zip(tile, totals, strict=True):
                place = at(b, b.add(results, b.mul(dim, I64(4 * group))), I64(i))
                first, second = (
                    spread(b, load(b, b.add(shares, I64(4 * (2 * group + which))), F32), REALS) for which in (0, 1)
                )
                store(b, b.fmul(plus_product(b, total, load(b, place, REALS), first), second), place)
            return context.get_dummy_value()

        return types.void(cache, *[types.intp] * 10), generate

    return add


WIDE_FOUR, WIDE_TWO, WIDE_ONE = (WIDE if ROOMY else WIDE // groups for groups in (4, 2, 1))
wide_four, wide_two, wide_one = (
    sum_kernel(groups, wide) for groups, wide in ((4, WIDE_FOUR), (2, WIDE_TWO), (1, WIDE_ONE))
)
narrow_four, narrow_two, narrow_one = (sum_kernel(groups, 1) for groups in (4, 2, 1))


@compiled
def add_blocks(
    cache: Any, size: int, dim: int, blocks: int, count: int, weights: int, steps: int, weights_apart: int,
    groups: int, shares: int, results: int,
) -> None:  # fmt: skip
    """Sums over blocks of values by weights.

    Args:
        cache: for its type, fp32 or the bits of bf16
        blocks, count: where the addresses of so many blocks lie, and of two more that come next
        weights, weights_apart: address of the first head's weights (count, 16 * steps), and bytes to the next one's
        shares, results: addresses (G, 2) and (G, D): a result becomes (result * first share + sum) * second share
    """
    group = 0
    while group < groups:
        few = 4 if groups - group >= 4 else 2 if groups - group >= 2 else 1
        wide = WIDE_FOUR if few == 4 else WIDE_TWO if few == 2 else WIDE_ONE
        mine, ours, channel = weights + weights_apart * group, shares + 8 * group, 0
        while channel < dim:
            begin, to = cache.itemsize * channel, results + 4 * (dim * group + channel)
            many = dim - channel >= wide * LANES
            if few == 4:
                if many:
                    wide_four(cache, size, dim, blocks, count, begin, mine, steps, weights_apart, ours, to)
                else:
                    narrow_four(cache, size, dim, blocks, count, begin, mine, steps, weights_apart, ours, to)
            elif few == 2:
                if many:
                    wide_two(cache, size, dim, blocks, count, begin, mine, steps, weights_apart, ours, to)
                else:
                    narrow_two(cache, size, dim, blocks, count, begin, mine, steps, weights_apart, ours, to)
            else:
                if many:
                    wide_one(cache, size, dim, blocks, count, begin, mine, steps, weights_apart, ours, to)
                else:
                    narrow_one(cache, size, dim, blocks, count, begin, mine, steps, weights_apart, ours, to)
            channel += wide * LANES if many else LANES
        group += few
