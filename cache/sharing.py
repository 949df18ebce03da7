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
    """Jobs that are done one after the other, as often as one likes; arguments may be changed in between.

    Args:
        times: so many such lists, each with arguments of its own

    Attributes:
        jobs: of each list (times, tasks, JOB_WORDS); what they tell holds as long as this lives
    """

    def __init__(self, tasks: Sequence[Task], times: int = 1) -> None:
        starts = list(itertools.accumulate((len(task.words) for task in tasks), initial=0))
        self._words = np.zeros((times, starts[-1]), np.int64)
        self.jobs = np.zeros((times, len(tasks), JOB_WORDS), np.int64)
        self._places = [[start + place for place in task.places] for task, start in zip(tasks, starts, strict=False)]
        lists = self._words.ctypes.data + self._words.strides[0] * np.arange(times)
        for number, (task, start) in enumerate(zip(tasks, starts, strict=False)):
            self.jobs[:, number] = task.function, 0, 0, task.count, task.piece
            self.jobs[:, number, 1] = lists + 8 * start
            self._words[:, start : start + len(task.words)] = task.words
        self._address = self.jobs.ctypes.data

    def put(self, task: int, argument: int, words: int | Sequence[int]) -> None:
        """Change a number, or the address of an array of the same shape: for all lists, or one for each."""
        self._words[:, self._places[task][argument]] = words

    def put_rows(self, task: int, argument: int, arrays: Sequence[NDArray[Any]]) -> None:
        """Change an array, one for each list, for one of the same type that may be longer or shorter.

        They must live on.
        """
        place = self._places[task][argument]
        self._words[:, place] = [array.__array_interface__["data"][0] for array in arrays]
        self._words[:, place + 1] = [len(array) for array in arrays]

    def do(self, threads: int | None = None) -> None:
        """All lists, with so many threads, or as many as torch may use."""
        if self.jobs.size:
            together(self._address, self.jobs.shape[0] * self.jobs.shape[1], threads)


def bits(number: float) -> int:
    return int(np.float64(number).view(np.int64))
