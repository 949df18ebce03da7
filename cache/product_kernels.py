"""Sums of products of bytes in 16 lanes, by what a processor has for them; written for LLVM itself.

Of each product one byte has no sign and is small, the other one has a sign. A sum is an exact integer, so every way to
make it gives the same one. Without instructions that add up four products at once, two of them are added up in 16 bits,
which have room for some more before they are widened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from cache.lane_kernels import (
    FINEST,
    I8,
    I16,
    I32,
    I64,
    LANES,
    NUMBERS,
    REALS,
    WHOLES,
    add_neighbours,
    call,
    knows,
    same,
)

ROOM = 2**15 - 1
"""The largest number of 16 bits."""
BYTES = 4 * LANES
REGISTERS = 16
"""Of 32 vectors of 64 bytes those that sums may take."""


@dataclass(frozen=True)
class Way:
    """How products are made and added up.

    Attributes:
        product: LLVM's name of the instruction that adds up four products to 32 bits, or two of them in 16 bits
        width: bytes of a vector
        widen: if these are 16 bits, LLVM's name of what adds up two such numbers in 32
    """

    product: str = ""
    width: int = BYTES
    widen: str = ""

    @property
    def whole(self) -> bool:
        """Whether a sum is one vector, to which one instruction adds: then there are twice as many vectors, too."""
        return bool(self.product) and self.width == BYTES and not self.widen


WAYS = {
    "avx512vnni": Way("llvm.x86.avx512.vpdpbusd.512"),
    "avxvnni": Way("llvm.x86.avx512.vpdpbusd.256", 32),
    "avx512bw": Way("llvm.x86.avx512.pmaddubs.w.512", widen="llvm.x86.avx512.pmaddw.d.512"),
    "avx2": Way("llvm.x86.avx2.pmadd.ub.sw", 32, "llvm.x86.avx2.pmadd.wd"),
}
"""By the feature that they ask for, the best first."""
KNOWN = [*(way for feature, way in WAYS.items() if knows(feature)), Way()]
"""Those that this processor has; the last one is for any."""


class Sums:
    """Sums of products, in registers while code is written with `builder`.

    Args:
        count: how many there are
        most: the largest byte without a sign that is multiplied
        turns: sums that one consists of, where there are registers for them: else it would wait for the product before
    """

    def __init__(self, builder: Any, count: int, most: int, way: Way = KNOWN[0], turns: int = 1) -> None:
        self._builder, self._way, self._parts = builder, way, BYTES // way.width
        self._most = ROOM // (2 * most * FINEST)
        most_sums = REGISTERS if way.whole else REGISTERS // 2
        turns = 1 if way.widen or turns * count * self._parts > most_sums else turns
        lanes = LANES // self._parts
        self._bytes, self._shorts, self._wholes = (
            ir.VectorType(kind, size * lanes) for kind, size in ((I8, 4), (I16, 2), (I32, 1))
        )
        self._wide = [[self._room(self._wholes) for _ in range(turns)] for _ in range(count)]
        self._narrow = [self._room(self._shorts) for _ in range(count)] if way.widen else []

    def _room(self, kind: Any) -> list[Any]:
        return [cgutils.alloca_once(self._builder, kind) for _ in range(self._parts)]

    def _split(self, value: Any, kind: Any) -> list[Any]:
        """The parts of a vector of 64 bytes."""
        whole = self._builder.bitcast(value, ir.VectorType(kind.element, self._parts * kind.count))
        if self._parts == 1:
            return [whole]
        nothing = ir.Constant(whole.type, ir.Undefined)
        lanes = ([part * kind.count + lane for lane in range(kind.count)] for part in range(self._parts))
        return [
            self._builder.shuffle_vector(whole, nothing, ir.Constant(ir.VectorType(I32, kind.count), mine))
            for mine in lanes
        ]

    def _join(self, parts: list[Any]) -> Any:
        if len(parts) == 1:
            return parts[0]
        return self._builder.shuffle_vector(*parts, ir.Constant(WHOLES, list(range(LANES))))

    def _put(self, values: list[Any], places: list[Any]) -> None:
        for value, place in zip(values, places, strict=True):
            self._builder.store(value, place)

    def begin(self, starts: Iterable[Any]) -> None:
        """What each sum begins with, in 16 lanes."""
        for mine, start in zip(self._wide, starts, strict=True):
            self._put(self._split(start, self._wholes), mine[0])
            for other in mine[1:]:
                self._put([same(self._wholes, 0)] * self._parts, other)
        for narrow in self._narrow:
            self._put([same(self._shorts, 0)] * self._parts, narrow)

    @contextmanager
    def steps(self, count: Any, adds: int) -> Iterator[Any]:
        """A loop over numbers from 0 to count - 1, in which at most so many products are added to a sum each time."""
        b = self._builder
        if not self._narrow:
            with cgutils.for_range(b, count) as loop:
                yield loop.index
            return
        room = I64(self._most // adds)
        stretches = b.sdiv(b.add(count, b.sub(room, I64(1))), room)
        with cgutils.for_range(b, stretches) as outer:
            first = b.mul(outer.index, room)
            left = b.sub(count, first)
            few = b.select(b.icmp_signed("<", left, room), left, room)
            with cgutils.for_range(b, few) as loop:
                yield b.add(first, loop.index)
            self.widen()

    def widen(self) -> None:
        """Make room in sums of 16 bits, if there are any: they have it for `ROOM` // (2 * most * `FINEST`) products."""
        b = self._builder
        for narrow, (wide,) in zip(self._narrow, self._wide, strict=True) if self._narrow else ():
            for short, whole in zip(narrow, wide, strict=True):
                two = call(b, self._way.widen, self._wholes, b.load(short), same(self._shorts, 1))
                b.store(b.add(b.load(whole), two), whole)
            self._put([same(self._shorts, 0)] * self._parts, narrow)

    def add(self, which: int, turn: int, left: Any, right: Any) -> None:
        """To each lane of a sum the products of its four bytes in left, without a sign, and in right, with one."""
        b = self._builder
        if self._narrow:
            pairs = zip(
                self._narrow[which], self._split(left, self._bytes), self._split(right, self._bytes), strict=True
            )
            for place, one, other in pairs:
                b.store(b.add(b.load(place), call(b, self._way.product, self._shorts, one, other)), place)
            return
        places = self._wide[which][turn % len(self._wide[which])]
        if not self._way.product:
            b.store(add_plainly(b, b.load(places[0]), left, right), places[0])
            return
        for place, one, other in zip(
            places, self._split(left, self._wholes), self._split(right, self._wholes), strict=True
        ):
            b.store(call(b, self._way.product, self._wholes, b.load(place), one, other), place)

    def end(self) -> list[Any]:
        """The sums, in 16 lanes each; those of 16 bits must have been widened."""
        b = self._builder
        wholes = [[self._join([b.load(part) for part in each]) for each in mine] for mine in self._wide]
        return [mine[0] if len(mine) == 1 else b.add(*mine) for mine in wholes]

    def in_reals(self) -> list[Any]:
        """`end` in fp32."""
        return [self._builder.sitofp(whole, REALS) for whole in self.end()]


def add_plainly(builder: Any, sums: Any, left: Any, right: Any) -> Any:
    """`Sums.add` by six instructions that all processors have."""
    left, right, half = builder.bitcast(left, NUMBERS), builder.bitcast(right, NUMBERS), same(NUMBERS, 8)
    sums = add_neighbours(
        builder, sums, builder.and_(left, same(NUMBERS, 255)), builder.ashr(builder.shl(right, half), half)
    )
    return add_neighbours(builder, sums, builder.lshr(left, half), builder.ashr(right, half))
