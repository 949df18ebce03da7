"""CPU kernels that tell what pairs of blocks weigh: of a tile of 16 pairs both products and the masses, then the next.

A decoded token finds pairs in memory. Products of many pairs and then masses of many would let memory rest while masses
are made; so, tile by tile, it goes on reading. Written for LLVM itself, as `cache.lane_kernels`. Compiled by Numba when
first called.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache.four_bit_kernels import SLICE_BYTES, WIDEST, spread_at, tile_products
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
from cache.product_kernels import KNOWN, Way

MEAN_WORDS, MEAN_SCALES, SLOPE_WORDS, SLOPE_SCALES, SIZES = range(5)
"""Where pairs lie: addresses of the words and scales of both their vectors, and of the sizes of their variances."""
LYING = 5
POWERS, PRODUCTS, TOLD, NOW = range(4)
"""Of each query: scales of its products with means, for powers of two, and with slopes; what sizes are multiplied with;
the power of two beside which masses are told."""
KINDS = 4
ABREAST = 2
"""Tiles that are under way at once: a product waits for others of its own sum."""
AHEAD = 32
"""Slices: so far before it is needed a slice is asked for. What lies in order a processor asks for by itself, too."""


def weigher(vectors: int, *, way: Way = KNOWN[0]) -> Any:
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
            every = range(vectors)
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

                totals = iter(tile_products(b, way, begins, slices, each, begun, soon))
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
                    mean = b.select(hidden, same(REALS, NOTHING), means[i])
                    scatter = plus_product(b, square, size, of_query(TOLD, i))
                    scatter = plus_product(b, scatter, along[i], along[i])
                    power = plus_product(b, mean, reach, call(b, f"llvm.sqrt.v{LANES}f32", REALS, scatter))
                    b.store(larger(b, power, b.load(peaks[i])), peaks[i])
                    masses.append(moved_power(b, power, of_query(NOW, i)))
                    store(b, masses[-1], at(b, b.add(to, b.mul(to_apart, I64(i))), tile))
                return masses

            with cgutils.for_range(b, steps) as loop:
                for four in fours:
                    b.store(same(REALS, 0.0), four)
                with cgutils.for_range(b, I64(CHUNK // LANES // ABREAST)) as inner:
                    tile = b.add(b.mul(loop.index, I64(CHUNK // LANES)), b.mul(inner.index, I64(ABREAST)))
                    tiles = [b.add(tile, I64(place)) for place in range(ABREAST)]
                    means = products(MEAN_WORDS, MEAN_SCALES, POWERS, tiles)
                    along = products(SLOPE_WORDS, SLOPE_SCALES, PRODUCTS, tiles)
                    both = [weigh_tile(*of_tile) for of_tile in zip(tiles, means, along, strict=True)]
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
