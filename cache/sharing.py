"""Compiled functions of arrays, over a range of heads, as jobs of a team: nobody hands anything over through Python.

Their arguments lie in memory as words: of an array its address and shape, of a number itself. See `sharing_kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.parallel import threads_for
from cache.team import together

JOB_WORDS = 5


@dataclass(frozen=True)
class Shared:
    """A job over heads.

    Attributes:
        address: of the compiled function
        kinds: of its arguments: an array's type and dimensions, or None for a number
    """

    address: int
    kinds: tuple[tuple[np.dtype[Any], int] | None, ...]

    def words(self, arguments: Sequence[Any]) -> NDArray[np.int64]:
        """The arguments in memory; arrays must live on until the job is done."""
        words: list[int] = []
        for argument, kind in zip(arguments, self.kinds, strict=True):
            if kind is None:
                words.append(bits(argument) if isinstance(argument, float) else int(argument))
                continue
            assert (argument.dtype, argument.ndim) == kind, "it would be misread"
            assert argument.flags.c_contiguous, "it would be misread"
            words.append(argument.__array_interface__["data"][0])
            words += argument.shape
        return np.array(words, np.int64)


def bits(number: float) -> int:
    return int(np.float64(number).view(np.int64))


def share(tasks: Sequence[tuple[Shared, Sequence[Any]]], heads: int, each: int) -> None:
    """Do jobs one after the other for all heads, with all threads where so many products for each are worth it."""
    words = [shared.words(arguments) for shared, arguments in tasks]
    jobs = np.array(
        [(shared.address, mine.ctypes.data, 0, heads, 1) for (shared, _), mine in zip(tasks, words, strict=True)],
        np.int64,
    )
    assert jobs.shape == (len(tasks), JOB_WORDS)
    together(jobs.ctypes.data, len(tasks), threads_for(heads, each))
