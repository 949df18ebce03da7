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

from cache.compiling import kernels
from cache.team import together

JOB_WORDS = 6


@dataclass(frozen=True)
class Task:
    """A job and its arguments.

    Attributes:
        function: address of what is compiled
        words: the arguments in memory
        places: of each argument among the words
        count: numbers that it is done for
        piece: how many of them a thread claims at once
        ask: address of what asks for what the first of some numbers reads, with the same arguments, or 0
    """

    function: int
    words: Sequence[int]
    places: Sequence[int]
    count: int
    piece: int = 1
    ask: int = 0


@dataclass(frozen=True)
class InRow:
    """One job of several tasks for the same numbers: for some of them the first one, then the next one."""

    tasks: Sequence[Task]


@dataclass(frozen=True)
class SideBySide:
    """One job of several tasks of which none waits for another: the numbers of one follow those of the one before."""

    tasks: Sequence[Task]


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
        words, places = words_of(arguments, self.kinds)
        return Task(self.address, words, places, heads)


class Tasks:
    """Jobs that are done one after the other, as often as one likes; arguments may be changed in between.

    Args:
        tasks: those that are one job count one by one where arguments are changed
        times: so many such lists, each with arguments of its own

    Attributes:
        jobs: of each list (times, jobs, JOB_WORDS); what they tell holds as long as this lives
    """

    def __init__(self, tasks: Sequence[Task | InRow | SideBySide], times: int = 1) -> None:
        each = [task for some in tasks for task in ([some] if isinstance(some, Task) else some.tasks)]
        joint = sum(joint_words(some) for some in tasks)
        starts = list(itertools.accumulate((len(task.words) for task in each), initial=joint))
        self._words = np.zeros((times, starts[-1]), np.int64)
        self.jobs = np.zeros((times, len(tasks), JOB_WORDS), np.int64)
        self._places = [[start + place for place in task.places] for task, start in zip(each, starts, strict=False)]
        self._lists = self._words.ctypes.data + self._words.strides[0] * np.arange(times)
        for task, start in zip(each, starts, strict=False):
            self._words[:, start : start + len(task.words)] = task.words
        left, room = iter(starts), 0
        for number, some in enumerate(tasks):
            if isinstance(some, Task):
                self._lay(number, some.function, next(left), some.count, some.piece, some.ask)
            else:
                self._join(number, some, room, [next(left) for _ in some.tasks])
                room += joint_words(some)
        self._address = self.jobs.ctypes.data

    def _lay(self, number: int, function: int, start: int, count: int, piece: int, ask: int) -> None:
        """A job whose arguments begin at one of each list's words."""
        self.jobs[:, number] = function, 0, 0, count, piece, ask
        self.jobs[:, number, 1] = self._lists + 8 * start

    def _join(self, number: int, some: InRow | SideBySide, room: int, starts: list[int]) -> None:
        """A job of several tasks, told by words from `room` on, whose own begin at these words."""
        joining, tasks = kernels("joining"), some.tasks
        first = tasks[0]
        ends = itertools.accumulate(task.count for task in tasks)
        self._words[:, room] = len(tasks)
        for place, task, start, end in zip(itertools.count(room + 1, 4), tasks, starts, ends, strict=False):
            self._words[:, place] = task.function
            self._words[:, place + 1] = self._lists + 8 * start
            self._words[:, place + 2 : place + 4] = end, task.ask
        if isinstance(some, InRow):
            assert all((task.count, task.piece) == (first.count, first.piece) for task in tasks)
            self._lay(number, joining.in_row(), room, first.count, first.piece, 0)
        else:
            count, piece = sum(task.count for task in tasks), max(task.piece for task in tasks)
            self._lay(number, joining.side_by_side(), room, count, piece, first.ask and joining.ask_first())

    def put(self, task: int, argument: int, words: int | Sequence[int]) -> None:
        """Change a number, or the address of an array of the same shape: for all lists, or one for each."""
        self._words[:, self._places[task][argument]] = words

    def put_arrays(self, task: int, argument: int, arrays: Sequence[NDArray[Any]]) -> None:
        """Change an array for one of the same type and as many dimensions: one for all lists, or one for each.

        They must live on.
        """
        place = self._places[task][argument]
        told = [(array.__array_interface__["data"][0], *array.shape) for array in arrays]
        self._words[:, place : place + len(told[0])] = told

    def do(self, threads: int | None = None) -> None:
        """All lists, with so many threads, or as many as torch may use."""
        if self.jobs.size:
            together(self._address, self.jobs.shape[0] * self.jobs.shape[1], threads)


def words_of(
    arguments: Sequence[Any], kinds: Sequence[tuple[np.dtype[Any], int] | None]
) -> tuple[list[int], list[int]]:
    """Arguments of such kinds in memory, and where each of them begins; arrays must live on."""
    words: list[int] = []
    places: list[int] = []
    for argument, kind in zip(arguments, kinds, strict=True):
        places.append(len(words))
        if kind is None:
            words.append(bits(argument) if isinstance(argument, float) else int(argument))
            continue
        assert (argument.dtype, argument.ndim) == kind, "it would be misread"
        assert argument.flags.c_contiguous, "it would be misread"
        words.append(argument.__array_interface__["data"][0])
        words += argument.shape
    return words, places


def joint_words(some: Task | InRow | SideBySide) -> int:
    """How many words tell which tasks are one job."""
    return 0 if isinstance(some, Task) else 1 + 4 * len(some.tasks)


def bits(number: float) -> int:
    return int(np.float64(number).view(np.int64))
