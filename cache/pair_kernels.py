"""CPU kernels that open pairs of blocks: they tell what the two blocks weigh by themselves.

What is looked at of both blocks lies in one record (`cache.opened`), so a pair from anywhere is read in whole lines,
once for four query heads. Masses are told beside powers of two, as those of `cache.mass_kernels`. Written for LLVM
itself, as `cache.lane_kernels`. Compiled by Numba when first called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache.four_bit_kernels import HALVES, LARGEST, SLICE_BYTES, both_halves
from cache.lane_kernels import (
    F32,
    I32,
    I64,
    LANES,
    LOG2_E,
    NOTHING,
    REALS,
    WHOLES,
    ask,
    at,
    call,
    larger,
    load,
    plus_product,
    same,
    spread,
    store,
)
from cache.mass_kernels import moved_power
from cache.opened import ROWS, WIDE
from cache.product_kernels import Sums
from cache.sections import PAIR

HEADS = 4
"""Query heads for which a pair is read once."""
FOUR = PAIR * ROWS
"""Rows of a pair: the mean and the slope of its first block, and those of its second one."""
AHEAD = 6
"""Pairs: so far before it is needed one is asked for."""
NARROW = 2
"""Slices of rows for which queries stay in registers."""
RECORD, HIDDEN = range(2)
"""Of a pair that is opened: addresses of its record, and of what hides its blocks from a query."""
LYING = 2
FOURS, FOUR_REALS, TWO_REALS = ir.VectorType(I32, HEADS), ir.VectorType(F32, HEADS), ir.VectorType(F32, 2)


def picked(builder: Any, two: Iterable[Any], lanes: list[int]) -> Any:
    """Lanes of two vectors, those of the second one behind those of the first."""
    return builder.shuffle_vector(*two, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def each(builder: Any, few: Any, lanes: list[int]) -> Any:
    """Lanes of a vector of few numbers."""
    return picked(builder, (few, ir.Constant(few.type, ir.Undefined)), lanes)


def by_fours(start: int) -> list[int]:
    """Lanes of two vectors so that, of each four, two of the first stand beside the same two of the second."""
    return [lane + of for four in range(0, LANES, 4) for lane in (four + start, four + start + 1) for of in (0, LANES)]


def added_up(builder: Any, sums: list[Any]) -> Any:
    """Of four vectors the sums of each four lanes: (4 fours, 4 vectors)."""
    b = builder
    halves = [b.add(*(picked(b, two, by_fours(start)) for start in (0, 2))) for two in (sums[:2], sums[2:])]
    ends = [
        [four + lane + of for four in range(0, LANES, 4) for of in (0, LANES) for lane in (start, start + 1)]
        for start in (0, 2)
    ]
    return b.add(*(picked(b, halves, lanes) for lanes in ends))


def opener(known: int | None) -> Any:
    """A kernel for the masses of both blocks of pairs, for four query heads, beside powers of two.

    The result takes addresses, and strides in bytes: of where pairs lie (`LYING` int64 each, and of `AHEAD` more), and
    how many there are, an even number; slices of a row; of the first query's 8-bit numbers, the stride to the
    next one's, what sums begin with, and their scales; of four products with the usual profile; of four powers of two;
    and of where the masses go, for each two pairs (4 blocks, 4 heads). What is added to all powers says `shift`.

    Behind the masses go the largest powers, of which four belong to each head.

    Args:
        known: slices of a row, if they are so few that the queries stay in registers
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def opened(
        context: Any, lying: Any, count: Any, slices: Any, numbers: Any, apart: Any, starts: Any, query_sizes: Any,
        usual: Any, references: Any, reach: Any, shift: Any, to: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            lying, count, slices, numbers, apart, starts, query_sizes, usual, references, *how = arguments
            reach, shift, to = how
            every, two_blocks = list(range(HEADS)) * (LANES // HEADS), [lane // HEADS for lane in range(LANES)]
            asked = Asked(b, numbers, apart, starts, known)
            of_queries = each(b, load(b, query_sizes, FOUR_REALS), every)
            reference, profile = (each(b, load(b, x, FOUR_REALS), every) for x in (references, usual))
            square, factor = (spread(b, x, REALS) for x in (b.fmul(reach, reach), b.fmul(reach, F32(LOG2_E))))
            shift, best = spread(b, shift, REALS), cgutils.alloca_once_value(b, same(REALS, NOTHING))
            to_scales = b.mul(slices, I64(SLICE_BYTES))

            def told(place: Any, what: int) -> Any:
                return load(b, b.add(lying, b.add(b.mul(place, I64(8 * LYING)), I64(8 * what))), I64, 8)

            def products(record: Any, ahead: Any) -> Any:
                """Of a pair (2 blocks: mean and slope, 4 heads)."""
                whole = asked.times(record, ahead, slices)
                of_rows = each(b, load(b, b.add(record, to_scales), FOUR_REALS), two_blocks)
                return b.fmul(whole, b.fmul(of_rows, of_queries))

            def of_both(lies: list[Any]) -> Any:
                """Of two pairs the numbers of their blocks (4 blocks, 4 heads)."""
                return picked(b, (load(b, where, TWO_REALS) for where in lies), two_blocks)

            with cgutils.for_range(b, b.sdiv(count, I64(2))) as loop:
                place = b.mul(loop.index, I64(2))
                places = [place, b.add(place, I64(1))]
                records = [told(each_place, RECORD) for each_place in places]
                further = [told(b.add(each_place, I64(AHEAD)), RECORD) for each_place in places]
                for ahead in further:
                    ask(b, b.add(ahead, to_scales))
                rows = [products(*two) for two in zip(records, further, strict=True)]
                mean, along = (
                    picked(b, rows, [4 * row + head for row in range(kind, 2 * FOUR, 2) for head in range(HEADS)])
                    for kind in (0, 1)
                )
                size = of_both([b.add(record, b.add(to_scales, I64(4 * FOUR))) for record in records])
                hidden = of_both([told(each_place, HIDDEN) for each_place in places])
                scatter = plus_product(b, plus_product(b, square, size, profile), along, along)
                root = call(b, f"llvm.sqrt.v{LANES}f32", REALS, scatter)
                power = b.fmul(mean, same(REALS, LOG2_E))
                power = plus_product(b, b.fadd(power, shift), factor, root)
                power = b.fadd(power, hidden)
                b.store(larger(b, power, b.load(best)), best)
                store(b, moved_power(b, power, reference), at(b, to, loop.index))
            store(b, b.load(best), at(b, to, b.sdiv(count, I64(2))))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9, types.float32, types.float32, types.intp), generate

    return opened


class Asked:
    """Four queries while code is written with `builder`, and their products with the rows of a pair.

    Args:
        numbers, apart, starts, known: see `opener`
    """

    def __init__(self, builder: Any, numbers: Any, apart: Any, starts: Any, known: int | None) -> None:
        b = self._builder = builder
        first = ir.Constant(WHOLES, [-1, 0, 0, 0] * (LANES // 4))  # a sum's beginning belongs to one of its four lanes
        self._starts = [
            b.and_(spread(b, load(b, b.add(starts, I64(4 * head)), I32), WHOLES), first) for head in range(HEADS)
        ]
        self._queries = [b.add(numbers, b.mul(apart, I64(head))) for head in range(HEADS)]
        self._known = [self._slice(I64(WIDE * slice)) for slice in range(known or 0)]
        self._sums = Sums(b, HEADS, LARGEST)

    def _slice(self, channel: Any) -> list[list[Any]]:
        """Of each half of a slice, from a channel on, each query's numbers for all four rows."""
        b = self._builder
        places = [[b.add(b.add(query, channel), I64(LANES * half)) for query in self._queries] for half in (0, 1)]
        return [[each(b, load(b, place, FOURS, 1), list(range(4)) * 4) for place in half] for half in places]

    def times(self, words: Any, ahead: Any, slices: Any) -> Any:
        """Sums of products with the rows whose words begin there (4 rows, 4 queries); asks for others further on."""
        b = self._builder
        self._sums.begin(self._starts)
        if self._known:
            for slice, queries in enumerate(self._known):
                self._add(words, ahead, I64(SLICE_BYTES * slice), queries)
            self._sums.widen()
        else:
            with self._sums.steps(slices, HALVES) as step:
                further = b.mul(step, I64(SLICE_BYTES))
                self._add(words, ahead, further, self._slice(b.mul(step, I64(WIDE))))
        return b.sitofp(added_up(b, self._sums.end()), REALS)

    def _add(self, words: Any, ahead: Any, further: Any, queries: list[list[Any]]) -> None:
        b = self._builder
        ask(b, b.add(ahead, further))
        halves = both_halves(b, load(b, b.add(words, further), WHOLES, 1))
        for numbers, theirs in zip(halves, queries, strict=True):
            for head, query in enumerate(theirs):
                self._sums.add(head, 0, numbers, query)


open_narrow, open_wide = opener(NARROW), opener(None)


@intrinsic  # type: ignore[untyped-decorator]
def share_opened(
    context: Any, masses: Any, factors: Any, floors: Any, to: Any, steps: Any
) -> Any:  # fmt: skip
    """Add to 4 * steps numbers the masses of as many blocks (4 * steps, 4 heads) times factors, at least floors."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        masses, factors, floors, to, steps = arguments
        every = list(range(HEADS)) * (LANES // HEADS)
        factor, floor = (each(b, load(b, x, FOUR_REALS), every) for x in (factors, floors))
        with cgutils.for_range(b, steps) as loop:
            share = larger(b, b.fmul(load(b, at(b, masses, loop.index), REALS), factor), floor)
            two = b.fadd(share, each(b, share, [lane ^ 1 for lane in range(LANES)]))
            one = b.fadd(two, each(b, two, [lane ^ 2 for lane in range(LANES)]))
            place = b.add(to, b.mul(loop.index, I64(4 * HEADS)))
            store(b, b.fadd(load(b, place, FOUR_REALS), each(b, one, [0, 4, 8, 12])), place)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


@intrinsic  # type: ignore[untyped-decorator]
def sum_opened(context: Any, masses: Any, steps: Any, to: Any) -> Any:
    """Sums over blocks of masses (4 * steps, 4 heads)."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        masses, steps, to = arguments
        total = cgutils.alloca_once_value(b, same(REALS, 0.0))
        with cgutils.for_range(b, steps) as loop:
            b.store(b.fadd(b.load(total), load(b, at(b, masses, loop.index), REALS)), total)
        whole = b.load(total)
        eight = b.fadd(each(b, whole, list(range(8))), each(b, whole, list(range(8, 16))))
        store(b, b.fadd(each(b, eight, list(range(4))), each(b, eight, list(range(4, 8)))), to)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), generate


@intrinsic  # type: ignore[untyped-decorator]
def pool_opened(context: Any, masses: Any, steps: Any, least: Any, to: Any, totals: Any) -> Any:
    """Sums of the masses of both blocks of 2 * steps pairs (4 * steps blocks, 4 heads), for each pair (4 heads).

    Takes addresses. What is less than a head's least counts as nothing; sums over pairs are added to four totals.
    """

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        masses, steps, least, to, totals = arguments
        least = each(b, load(b, least, FOUR_REALS), list(range(HEADS)) * (LANES // HEADS))
        total = cgutils.alloca_once_value(b, load(b, totals, FOUR_REALS))
        with cgutils.for_range(b, steps) as loop:
            mass = load(b, at(b, masses, loop.index), REALS)
            mass = b.select(b.fcmp_ordered("<", mass, least), same(REALS, 0.0), mass)
            both = b.fadd(mass, each(b, mass, [lane ^ HEADS for lane in range(LANES)]))
            two = [each(b, both, list(range(start, start + HEADS))) for start in (0, 2 * HEADS)]
            for pair, sums in enumerate(two):
                store(b, sums, b.add(to, b.mul(b.add(b.mul(loop.index, I64(2)), I64(pair)), I64(4 * HEADS))))
            b.store(b.fadd(b.load(total), b.fadd(*two)), total)
        store(b, b.load(total), totals)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate
