"""A CPU kernel that works out where queries stand, for all that follows from it alone; see `plans.Standing`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import compiled, kernels

lanes, sharing, team = kernels("lane"), kernels("sharing"), kernels("team")
array, WHOLE, FLAG = sharing.array, sharing.WHOLE, sharing.FLAG
number_at = lanes.number_at
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
NUMBERS, TABLE = array(np.int64, 1), array(np.int64, 2)
KINDS = (
    *[NUMBERS] * 3, array(np.float32, 3), WHOLE, WHOLE, WHOLE, WHOLE, FLAG, FLAG, NUMBERS, NUMBERS, *[TABLE] * 3,
    *[array(np.float32, 3)] * 3,
)  # fmt: skip
unpack = sharing.unpacker(*KINDS)


@compiled
def place_queries(
    positions: Integers, tables: Integers, turned: Integers, near: Floats, size: int, recent: int, shared: int,
    sinks: int, bounded: bool, interleaved: bool, offsets: Integers, ends: Integers, fixed: Integers, latest: Integers,
    own: Integers, far_turns: Floats, own_turns: Floats, turns: Floats,
) -> int:  # fmt: skip
    """Fill what `plans.Standing` tells; returns how many far blocks all queries fetch, in one head.

    Args:
        positions, tables: see `plans.Standing`
        turned: address of what turns each position (T,): cosines and sines (2, S)
        near: the same of the first positions (size, 2, S), of (recent + 2) blocks if bounded
        size: positions of a block
        recent, shared, sinks: blocks
    """
    selected, heads, channels = 0, len(own), own_turns.shape[2]
    for t in range(len(positions)):
        block = positions[t] // size
        offset, end = positions[t] - block * size, block - recent
        offsets[t], ends[t] = offset, end
        for i in range(shared):
            fixed[t, i] = i if i < end else -1  # else it is a near one
        for i in range(recent + 1):
            fixed[t, shared + i] = end + i
        for i in range(latest.shape[1]):
            latest[t, i] = end - 1 - i if end - 1 - i >= sinks else -1
        selected += min(latest.shape[1], max(0, end - sinks))
        slot = team.read(tables[t] + 8 * block)
        for head in range(heads):
            own[head, t] = slot * heads + head
        own_turns[:, t] = near[offset]
        if bounded:
            far_turns[:, t] = near[(recent + 1) * size + offset]
        for part in range(2):
            for i in range(channels):
                turn = number_at(turned[t] + 4 * (part * channels + i))
                if not bounded:
                    far_turns[part, t, i] = turn
                # Both channels of a pair have the same cosine; the second one has the sine as it is.
                second, at = i % 2 == 1 if interleaved else i >= channels // 2, i // 2 if interleaved else i
                if not interleaved and second:
                    at -= channels // 2
                if second:
                    turns[t, part, at] = turn
    return selected


def warm_up() -> None:
    """Compile now."""
    none, nowhere = np.empty(0, np.int64), np.empty((0, 0, 0), np.float32)
    table = np.empty((0, 0), np.int64)
    told = none, none, table, table, table, nowhere, nowhere, nowhere
    made = words(none, none, none, nowhere, 1, 0, 0, 0, True, True, *told)  # read once it is compiled
    stand(made.ctypes.data)


def words(*arguments: Any) -> Integers:
    """Arguments of `place_queries` as `stand` takes them; arrays must live on."""
    made: Integers = sharing.words(arguments, *KINDS)
    return made


@compiled
def stand(arguments: int) -> int:
    """`place_queries` with arguments at an address: handing over so many from Python takes longer than the work."""
    return place_queries(*unpack(arguments))
