"""A CPU kernel for rows in 4 bits in tiles that lie anywhere; otherwise as `cache.four_bit_kernels`.

Compiled by Numba when first called.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from cache.four_bit_kernels import SLICE_BYTES, beside, in_bundles, multiply_tiles
from cache.lane_kernels import I64, ask, at, load
from cache.product_kernels import KNOWN, Way

LISTED = 2
"""Of a tile that lies anywhere: the addresses of its first slice, and of the scales of its rows."""


def listed_kernel(ahead: int, *, way: Way = KNOWN[0]) -> Any:
    """The products of a vector of 8-bit numbers with rows of tiles that lie anywhere, 16 in each.

    The result takes addresses: a list of tiles (`LISTED` each), how many there are, and slices of each; the vector,
    what its sums begin with, and its scale; where the results go, side by side. While it multiplies one tile it asks
    for that so many further on in the list, which has to go on: with any addresses.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def listed(context: Any, tiles: Any, many: Any, count: Any, vector: Any, start: Any, size: Any, to: Any) -> Any:
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            tiles, many, count, vector, start, size, to = arguments

            def told(tile: Any, what: int) -> Any:
                return load(b, b.add(tiles, b.add(b.mul(tile, I64(8 * LISTED)), I64(8 * what))), I64, 8)

            def multiply(tile: Any, few: int) -> None:
                places = [b.add(tile, I64(i)) for i in range(few)]
                later = [b.add(place, I64(ahead)) for place in places]
                coming = [told(place, 0) for place in later]
                for place in later:
                    ask(b, told(place, 1))

                def soon(step: Any) -> None:
                    for tile in coming:
                        ask(b, b.add(tile, b.mul(step, I64(SLICE_BYTES))))

                def goes(place: int, _: int) -> Any:
                    return at(b, to, places[place])

                lying, per_row = ([told(place, what) for place in places] for what in (0, 1))
                multiply_tiles(b, way, lying, count, [vector], start, size, per_row, goes, soon)

            in_bundles(b, many, beside(1, way), multiply)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 7), generate

    return listed
