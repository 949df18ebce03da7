"""A job that reads the clock, so that lists of jobs which run without Python tell how long a part of them took."""

from __future__ import annotations

import functools
import time
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cache import Shared, kernels

lanes, sharing, team = kernels("lane"), kernels("sharing"), kernels("team")
I32, I64 = lanes.I32, lanes.I64
CLOCK = time.CLOCK_MONOTONIC
unpack_clock = sharing.unpacker(sharing.WHOLE, sharing.WHOLE)


@intrinsic  # type: ignore[untyped-decorator]
def now(context: Any) -> Any:
    """Nanoseconds since some moment."""

    def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(I32, [I32, I64.as_pointer()])
        read = cgutils.get_or_insert_function(b.module, kind, "clock_gettime")
        found = cgutils.alloca_once(b, I64, 2)  # seconds, and nanoseconds beside them
        b.call(read, [I32(CLOCK), found])
        seconds, more = (b.load(b.gep(found, [I64(i)])) for i in (0, 1))
        return b.add(b.mul(seconds, I64(10**9)), more)

    return types.intp(), generate


def clock(arguments: int, first: int, last: int) -> None:
    """Add the time, in nanoseconds, times a number to a word; arguments: its address, the number."""
    word, times = unpack_clock(arguments)
    team.add(word, times * now())


@functools.cache
def shared_clock() -> Shared:
    """`clock` for `Tasks`."""
    return sharing.shared(clock, sharing.WHOLE, sharing.WHOLE)
