"""Compiled functions of arrays, over a range of heads, as jobs of a team: nobody hands anything over through Python.

Their arguments lie in memory as words: of an array its address and shape, of a number itself. See `sharing_kernels`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.team import together

JOB_WORDS = 5


@dataclass(frozen=True)
class Task:
    """A job and its arguments.

    Attributes:
        function: address of what is compiled
        words: the arguments in memory
        places: of each argument among the words
        count: numbers that it is done for
        piece: how many of them a thread claims at once
    """

    function: int
    words: Sequence[int]
    places: Sequence[int]
    count: int
    piece: int = 1


@dataclass(frozen=True)
class Shared:
    """A job over heads.

    Attributes:
        address: of the compiled function
        kinds: of its arguments: an array's type and dimensions, or None for a number
    """

    address: int
    kinds: tuple[tuple[np.dtype[Any], int] | None, ...]

    def task(self, arguments: Sequence[Any], heads: int) -> Task:
        """The job with arguments; arrays must live on until it is done."""
        words: list[int] = []
        places: list[int] = []
        for argument, kind in zip(arguments, self.kinds, strict=True):
            places.append(len(words))
            if kind is None:
                words.append(bits(argument) if isinstance(argument, float) else int(argument))
                continue
            assert (argument.dtype, argument.ndim) == kind, "it would be misread"
            assert argument.flags.c_contiguous, "it would be misread"
            words.append(argument.__array_interface__["data"][0])
            words += argument.shape
        return Task(self.address, words, places, heads)


class Tasks:
    """Jobs that are done one after the other, as often as one likes; arguments may be changed in between."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        starts = list(itertools.accumulate((len(task.words) for task in tasks), initial=JOB_WORDS * len(tasks)))
        self._words = np.zeros(starts[-1], np.int64)
        self._address, self._count = self._words.ctypes.data, len(tasks)
        self._places = [[start + place for place in task.places] for task, start in zip(tasks, starts, strict=False)]
        for number, (task, start) in enumerate(zip(tasks, starts, strict=False)):
            job = (task.function, self._address + 8 * start, 0, task.count, task.piece)
            self._words[JOB_WORDS * number : JOB_WORDS * (number + 1)] = job
            self._words[start : start + len(task.words)] = task.words

    def put(self, task: int, argument: int, word: int) -> None:
        """Change a number, or the address of an array of the same shape."""
        self._words[self._places[task][argument]] = word

    def put_rows(self, task: int, argument: int, array: NDArray[Any]) -> None:
        """Change an array for one of the same type that may be longer or shorter; it must live on."""
        place = self._places[task][argument]
        self._words[place], self._words[place + 1] = array.__array_interface__["data"][0], len(array)

    def do(self, threads: int | None = None) -> None:
        """With so many threads, or as many as torch may use."""
        if self._count:
            together(self._address, self._count, threads)


def bits(number: float) -> int:
    return int(np.float64(number).view(np.int64))
