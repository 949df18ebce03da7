"""How fast this machine reads memory: a sweep that only reads, by the threads and in the way that the engine's do.

Vectors of 64 bytes in order, asked for 4 KB ahead into the cache behind the nearest one, each thread 2 MiB at a time,
and nothing is done with them but what keeps the compiler from leaving it out. On two cores of an AMD EPYC no other way
was more than noise faster (one to eight streams of a thread, with and without asking ahead, `torch.max`), and claiming
128 KiB at a time was 14% slower.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from cache import job, together

PIECE_BYTES = 2 << 20
"""What a thread claims at once."""
NEAR = 128
"""Bytes: weights that lie no further apart were put there together."""


class Sweep:
    """Reads memory from its beginning to its end.

    Args:
        memory: contiguous tensors; those that lie side by side are read as one

    Attributes:
        bytes: of all of them
    """

    def __init__(self, memory: Iterable[Tensor]) -> None:
        from bench import reading_kernels

        self._memory = list(memory)  # lives as long as its addresses are used
        ranges = joined([(each.data_ptr(), each.data_ptr() + each.nbytes) for each in self._memory])
        self.bytes = sum(end - start for start, end in ranges)
        self._given = np.array([[start, 0] for start, _ in ranges], np.int64)
        function, given = job(reading_kernels.read_some), self._given.ctypes.data
        places = range(given, given + self._given.nbytes, self._given.strides[0])
        jobs = [(function, at, 0, end - start, PIECE_BYTES, 0) for at, (start, end) in zip(places, ranges, strict=True)]
        self._jobs = np.array(jobs, np.int64)

    def seconds(self) -> float:
        """Of one sweep."""
        begun = time.perf_counter()
        together(self._jobs.ctypes.data, len(self._jobs))
        return time.perf_counter() - begun

    def folded(self) -> list[int]:
        """What the last piece of each range that was read came to."""
        return [int(word) for word in self._given[:, 1]]


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of addresses in order; those that are near to each other become one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(set(ranges)):
        if found and start - found[-1][1] <= NEAR:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found
