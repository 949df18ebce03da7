"""The loop that reads memory and does nothing with it, for `bench.reading`; compiled by Numba."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache import kernels

lanes, team = kernels("lane"), kernels("team")
I64, WHOLES = lanes.I64, lanes.WHOLES
LINE, LINES = 64, 8
"""Bytes of a vector, and vectors of one round."""
AHEAD = 4096
"""Bytes."""


@intrinsic  # type: ignore[untyped-decorator]
def fold(context: Any, start: Any, length: Any) -> Any:
    """Read so many bytes, rounded down to LINES * LINE, from an address on; what comes of it is of no use."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        start, length = arguments
        sums = [cgutils.alloca_once_value(b, lanes.same(WHOLES, 0)) for _ in range(LINES)]
        with cgutils.for_range(b, b.udiv(length, I64(LINE * LINES))) as loop:
            here = b.add(start, b.mul(loop.index, I64(LINE * LINES)))
            for number, total in enumerate(sums):
                line = b.add(here, I64(LINE * number))
                lanes.ask(b, b.add(line, I64(AHEAD)), nearest=False)
                b.store(b.xor(b.load(total), lanes.load(b, line, WHOLES)), total)
        folded = b.load(sums[0])
        for total in sums[1:]:
            folded = b.xor(folded, b.load(total))
        reduced = ir.FunctionType(lanes.I32, [WHOLES])
        name = f"llvm.vector.reduce.xor.v{lanes.LANES}i32"
        return b.sext(b.call(cgutils.get_or_insert_function(b.module, reduced, name), [folded]), I64)

    return types.intp(types.intp, types.intp), generate


def read_some(arguments: int, first: int, last: int) -> None:
    """Read bytes first, …, last - 1 from an address on; the word behind it gets what nobody needs."""
    team.write(arguments + 8, fold(team.read(arguments) + first, last - first))
