"""CPU kernels that tell what pairs of blocks weigh: of a tile of 16 pairs both products and the masses, then the next.

A decoded token finds pairs in memory. Products of many pairs and then masses of many would let memory rest while masses
are made; so, tile by tile, it goes on reading. Written for LLVM itself, as `cache.lane_kernels`. Compiled by Numba when
first called.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache.compiling import compiled
from cache.four_bit_kernels import SLICE_BYTES, WIDEST, chunks_of, spread_at, tile_products
from cache.four_bit_kernels import beside as tiles_beside
from cache.four_bits import DEEP
from cache.lane_kernels import (
    CHUNK,
    F32,
    I32,
    I64,
    LANES,
    LOG2_E,
    NOTHING,
    REALS,
    WHOLES,
    address,
    ask,
    at,
    call,
    larger,
    load,
    over_lanes,
    plus_product,
    same,
    spread,
    store,
)
from cache.mass_kernels import moved_power
from cache.opening_kernels import HIGH, two_to, whole_sections
from cache.product_kernels import KNOWN
from cache.sections import PAIRS, SECTION
from cache.walk_kernels import Floats, Integers, Small, Starts, scales_at, words_at

PIECE = 512
"""Pairs that all queries look at before the next ones, and once more where the power of two has to rise."""
PAIR_MEANS, PAIR_SLOPES, PAIR_SIZES = range(3)
"""Parts of an index of pairs, in its table's order."""
MEAN_WORDS, MEAN_SCALES, SLOPE_WORDS, SLOPE_SCALES, SIZES = range(5)
"""Where pairs lie: addresses of the words and scales of both their vectors, and of the sizes of their variances."""
LYING = 5
POWERS, PRODUCTS, TOLD, NOW = range(4)
"""Of each query: scales of its products with means, for powers of two, and with slopes; what sizes are multiplied with;
the power of two beside which masses are told."""
KINDS = 4
TWO = 2
"""Tiles whose masses are added up first, whether both are under way at once or not: sums are the same everywhere."""
AHEAD = 32
"""Slices: so far before it is needed a slice is asked for. What lies in order a processor asks for by itself, too."""


def weigher(vectors: int) -> Any:
    """A kernel for the masses of 64 * steps pairs for so many queries; see `cache.landmarks.moments`.

    The result takes addresses, and strides in bytes: of where pairs lie (`LYING` int64), and slices of a vector; of the
    first query's 8-bit numbers, the stride to the next one's, and what sums begin with; of the first query's `POWERS`,
    and the stride to its `PRODUCTS` and so on, next to which lie those of the next query; of the pairs from which on a
    query sees none (int32), the first pair that any sees, and the number of the first pair here; of where the first
    query's masses go, and the stride to the next one's; of its sums of masses in 16 lanes, behind which the new ones
    are written, before those of the next query; and of where its largest power goes. If that is far above the power
    beside which masses are told, nothing else that was written means anything.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def weigh(
        context: Any, lying: Any, slices: Any, numbers: Any, apart: Any, starts: Any, queries: Any, kinds_apart: Any,
        stops: Any, seen: Any, first: Any, reach: Any, to: Any, to_apart: Any, sums: Any, best: Any, steps: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            lying, slices, numbers, apart, starts, queries, kinds_apart, *more = arguments
            stops, seen, first, reach, to, to_apart, sums, best, steps = more
            every, abreast = range(vectors), min(TWO, tiles_beside(vectors, KNOWN[0]))
            each = [b.add(numbers, b.mul(apart, I64(i))) for i in every]
            begun = [spread_at(b, b.add(starts, I64(4 * i))) for i in every]
            square, reach = (spread(b, x, REALS) for x in (b.fmul(reach, reach), b.fmul(reach, F32(LOG2_E))))
            begin = spread(b, b.trunc(b.sub(seen, first), I32), WHOLES)
            ends = [
                spread(b, b.sub(load(b, b.add(stops, I64(4 * i)), I32), b.trunc(first, I32)), WHOLES) for i in every
            ]
            mine = [b.add(sums, I64(2 * 4 * LANES * i)) for i in every]
            totals = [cgutils.alloca_once_value(b, load(b, x, REALS)) for x in mine]
            peaks = [cgutils.alloca_once_value(b, same(REALS, NOTHING)) for _ in every]
            fours = [cgutils.alloca_once(b, REALS) for _ in every]
            stride = b.mul(slices, I64(SLICE_BYTES))

            def of_query(what: int, i: int) -> Any:
                place = b.add(queries, b.add(b.mul(kinds_apart, I64(what)), I64(4 * i)))
                return spread(b, load(b, place, F32), REALS)

            def where(what: int) -> Any:
                return load(b, b.add(lying, I64(8 * what)), I64, 8)

            def products(words: int, scales: int, of_queries: int, tiles: list[Any]) -> list[list[Any]]:
                """Of each tile, and of each query with its 16 rows."""
                begins = [b.add(where(words), b.mul(tile, stride)) for tile in tiles]

                def soon(step: Any) -> None:
                    further = b.add(b.mul(step, I64(SLICE_BYTES)), I64(SLICE_BYTES * AHEAD))
                    for lies in begins:
                        ask(b, b.add(lies, further))

                totals = iter(tile_products(b, KNOWN[0], begins, slices, each, begun, soon))
                found = []
                for tile in tiles:
                    per_row = load(b, at(b, where(scales), tile), REALS)
                    factors = [b.fmul(per_row, of_query(of_queries, i)) for i in every]
                    found.append([b.fmul(next(totals), factor) for factor in factors])
                return found

            def weigh_tile(tile: Any, means: list[Any], along: list[Any]) -> list[Any]:
                size = load(b, at(b, where(SIZES), tile), REALS)
                numbers = b.add(
                    spread(b, b.trunc(b.mul(tile, I64(LANES)), I32), WHOLES), ir.Constant(WHOLES, list(range(LANES)))
                )
                early, masses = b.icmp_signed("<", numbers, begin), []
                for i in every:
                    hidden = b.or_(early, b.icmp_signed(">=", numbers, ends[i]))
                    scatter = plus_product(b, square, size, of_query(TOLD, i))
                    scatter = plus_product(b, scatter, along[i], along[i])
                    power = plus_product(b, means[i], reach, call(b, f"llvm.sqrt.v{LANES}f32", REALS, scatter))
                    power = b.select(hidden, same(REALS, NOTHING), power)
                    b.store(larger(b, power, b.load(peaks[i])), peaks[i])
                    masses.append(moved_power(b, power, of_query(NOW, i)))
                    store(b, masses[-1], at(b, b.add(to, b.mul(to_apart, I64(i))), tile))
                return masses

            with cgutils.for_range(b, steps) as loop:
                for four in fours:
                    b.store(same(REALS, 0.0), four)
                with cgutils.for_range(b, I64(CHUNK // LANES // TWO)) as inner:
                    tile = b.add(b.mul(loop.index, I64(CHUNK // LANES)), b.mul(inner.index, I64(TWO)))
                    tiles = [b.add(tile, I64(place)) for place in range(TWO)]
                    both = []
                    for some in (tiles[begin : begin + abreast] for begin in range(0, TWO, abreast)):
                        means = products(MEAN_WORDS, MEAN_SCALES, POWERS, some)
                        along = products(SLOPE_WORDS, SLOPE_SCALES, PRODUCTS, some)
                        both += [weigh_tile(*of_tile) for of_tile in zip(some, means, along, strict=True)]
                    for four, two in zip(fours, zip(*both, strict=True), strict=True):
                        b.store(b.fadd(b.load(four), b.fadd(*two)), four)
                for total, four in zip(totals, fours, strict=True):
                    b.store(b.fadd(b.load(total), b.load(four)), total)
            for i in every:
                store(b, b.load(totals[i]), b.add(mine[i], I64(4 * LANES)))
                store(b, over_lanes(b, "fmax", b.load(peaks[i])), b.add(best, I64(4 * i)))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10, types.float32, *[types.intp] * 5), generate

    return weigh


weigh_one, weigh_two, weigh_four, weigh_most = (weigher(vectors) for vectors in (1, 2, 4, WIDEST))


@compiled
def rise(beside: Floats, row: int, best: float, lanes: Floats) -> None:
    """Tell a row's masses beside a higher power of two from now on: sums (Q, 32) so far get smaller."""
    higher = np.rint(best)
    lanes[row, :LANES] *= two_to(beside[row, -1] - higher)
    beside[row, -1] = higher


@compiled
def weigh_some(
    lying: Integers, numbers: Small, starts: Starts, of_queries: Floats, stops: Starts, row: int,
    place: tuple[int, int], reach: float, masses: Floats, lanes: Floats, best: Floats, steps: int,
) -> int:  # fmt: skip
    """Masses of 64 * steps pairs for the queries from `row` on that are told at once; how many these are.

    Args:
        lying: by `lies`
        of_queries: (KINDS, Q)
        stops: the pairs from which on queries see none (Q,)
        place: the first pair that any sees, and the first one here
        lanes: sums of masses so far (Q, 32), behind which the new ones are written
        best: (Q,), filled: the largest powers
    """
    left, wide, channels, stride = len(masses) - row, 4 * of_queries.shape[1], numbers.shape[1], 4 * masses.shape[1]
    asked = address(numbers) + channels * row, channels, address(starts) + 4 * row, address(of_queries) + 4 * row, wide
    seen = address(stops) + 4 * row, *place, np.float32(reach)
    to = address(masses) + stride * row + 4 * place[1], stride, address(lanes) + 4 * 2 * LANES * row
    all_of_it = address(lying), channels // DEEP, *asked, *seen, *to, address(best) + 4 * row, steps
    if left >= WIDEST:
        weigh_most(*all_of_it)
        return WIDEST
    if left >= 4:
        weigh_four(*all_of_it)
        return 4
    if left >= 2:
        weigh_two(*all_of_it)
        return 2
    weigh_one(*all_of_it)
    return 1


@compiled
def lies(row: Integers, head: int, inside: int, channels: int, lying: Integers) -> None:
    """Where the pairs of one segment lie from the pair `inside` on, filled as `weigher` takes it."""
    lying[MEAN_WORDS] = words_at(row, PAIR_MEANS, head, inside, channels)
    lying[SLOPE_WORDS] = words_at(row, PAIR_SLOPES, head, inside, channels)
    lying[MEAN_SCALES] = scales_at(row, PAIR_MEANS, head, inside)
    lying[SLOPE_SCALES] = scales_at(row, PAIR_SLOPES, head, inside)
    lying[SIZES] = scales_at(row, PAIR_SIZES, head, inside)


@compiled
def weigh_pairs(
    numbers: Small, starts: Starts, sizes: Floats, table: Integers, head: int, sinks: int, ends: Integers, reach: float,
    told: Floats, masses: Floats, beside: Floats, peaks: Floats, totals: Floats,
) -> None:  # fmt: skip
    """Masses (Q, R) of pairs of whole sections, each beside a power of two, which rises if it must.

    Args:
        numbers, starts, sizes: what the queries are in the directions of pairs, in 8 bits, by `round_queries`
        table: of the index of pairs
        told: by `look_at_profile` (Q,)
        beside: the power beside which each 64 pairs are told (Q, R / 64), filled; the last one is the present one
        peaks: (Q,), filled: the largest power
        totals: (Q,), filled: the sums of all masses, beside the last power
    """
    rows, groups, begun = len(masses), len(masses) // len(ends), 0
    lying, stops, best = np.empty(LYING, np.int64), np.empty(rows, np.int32), np.empty(rows, np.float32)
    lanes, of_queries = np.zeros((rows, 2 * LANES), np.float32), np.empty((KINDS, rows), np.float32)
    of_queries[POWERS], of_queries[PRODUCTS], of_queries[TOLD] = sizes * np.float32(LOG2_E), sizes, told
    beside[:, -1] = peaks[:] = of_queries[NOW] = NOTHING
    seen = PAIRS * whole_sections(sinks, ends[0])[0]
    for row in range(rows):
        stops[row] = PAIRS * whole_sections(sinks, ends[row // groups])[1]
    for segment in range(len(table)):
        taken, inside = min(table[segment, 1], ends[-1] // SECTION * PAIRS - begun), 0
        while inside < taken:
            first = begun + inside
            steps = chunks_of(min(PIECE if first else CHUNK, taken - inside))  # by the first few the power is found
            lies(table[segment], head, inside, numbers.shape[1], lying)
            row = 0
            while row < rows:
                asked = row, (seen, first), reach, masses, lanes, best, steps
                few = weigh_some(lying, numbers, starts, of_queries, stops, *asked)
                risen = False
                for each in range(row, row + few):
                    if best[each] > beside[each, -1] + HIGH:
                        rise(beside, each, best[each], lanes)
                        of_queries[NOW, each], risen = beside[each, -1], True
                if risen:
                    weigh_some(lying, numbers, starts, of_queries, stops, *asked)
                for each in range(row, row + few):
                    lanes[each, :LANES] = lanes[each, LANES:]
                    beside[each, first // CHUNK : first // CHUNK + steps] = beside[each, -1]
                    peaks[each] = max(peaks[each], best[each])
                row += few
            inside += CHUNK * steps
        begun += max(0, taken)
    for row in range(rows):
        totals[row] = lanes[row, :LANES].sum()
