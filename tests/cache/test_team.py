"""Jobs that threads share: each number once, one job after the other, for any number of leaders and helpers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from cache import InRow, SideBySide, Task, Tasks, job, kernels, together

team = kernels("team")


def count_up(arguments: int, first: int, last: int) -> None:
    for number in range(first, last):
        place = arguments + 8 * number
        team.write(place, team.read(place) + 1)


def double(arguments: int, first: int, last: int) -> None:
    for number in range(first, last):
        place = arguments + 8 * number
        team.write(place, 2 * team.read(place))


def count_up_there(arguments: int, first: int, last: int) -> None:
    """As `Tasks` tells it: the argument is a word."""
    for number in range(first, last):
        place = team.read(arguments) + 8 * number
        team.write(place, team.read(place) + 1)


def double_there(arguments: int, first: int, last: int) -> None:
    for number in range(first, last):
        place = team.read(arguments) + 8 * number
        team.write(place, 2 * team.read(place))


def note(arguments: int, first: int, last: int) -> None:
    """As what asks for what is read: writes where it was told to begin."""
    team.write(team.read(arguments) + 8 * first, 1)


def nothing(arguments: int, first: int, last: int) -> None:
    pass


@pytest.fixture(autouse=True, params=[1, 2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def test_each_number_once_and_jobs_in_order() -> None:
    numbers, up, twice = np.zeros(1000, np.int64), job(count_up), job(double)
    at = numbers.ctypes.data
    jobs = np.array([[up, at, 0, 1000, 7, 0], [twice, at, 0, 1000, 100, 0], [up, at, 10, 999, 1, 0]])
    expected = np.full(1000, 2)
    expected[10:999] += 1
    for _ in range(200):
        numbers[:] = 0
        together(jobs.ctypes.data, len(jobs))
        assert (numbers == expected).all()


def test_several_leaders_take_turns() -> None:
    up, failed = job(count_up), []

    def lead() -> None:
        numbers = np.zeros(300, np.int64)
        jobs = np.array([[up, numbers.ctypes.data, 0, 300, 13, 0]])
        for turn in range(100):
            together(jobs.ctypes.data)
            if not (numbers == turn + 1).all():
                failed.append(turn)

    leaders = [threading.Thread(target=lead) for _ in range(3)]
    for leader in leaders:
        leader.start()
    for leader in leaders:
        leader.join()
    assert not failed


def test_who_waits_too_long_goes_away_and_is_called_again(threads: int) -> None:
    numbers, up = np.zeros(10, np.int64), job(count_up)
    jobs = np.array([[up, numbers.ctypes.data, 0, 10, 1, 0]])
    waiter = threading.Event()
    for turn in range(3):
        together(jobs.ctypes.data)
        assert (numbers == turn + 1).all()
        waiter.wait(0.02)


def test_tasks_in_a_row_and_side_by_side_are_one_job_each() -> None:
    numbers, more = np.zeros((2, 100), np.int64), np.zeros((2, 30), np.int64)
    up, twice = job(count_up_there), job(double_there)
    tasks = [Task(code, (0,), (0,), 100, 7) for code in (up, twice, up)]
    sides = [Task(up, (0,), (0,), 100, 7), Task(twice, (0,), (0,), 30, 4)]
    both = Tasks([InRow(tasks), SideBySide(sides), Task(up, (0,), (0,), 5)], times=2)
    for task, each in enumerate((numbers, numbers, numbers, numbers, more, numbers)):
        both.put(task, 0, [row.ctypes.data for row in each])
    more[:] = 3
    both.do()
    expected = np.full((2, 100), 4)
    expected[:, :5] += 1
    assert both.jobs.shape == (2, 3, len(both.jobs[0, 0]))
    assert (numbers == expected).all()
    assert (more == 6).all()


def test_who_is_done_asks_for_where_its_part_of_the_next_job_that_reads_begins(threads: int) -> None:
    asked, some, asks = np.zeros((3, 100), np.int64), job(nothing), job(note)
    reading = [Task(some, (row.ctypes.data,), (0,), 50, 10, asks) for row in asked]
    jobs = Tasks([reading[0], Task(some, (0,), (0,), 1), SideBySide(reading[1:]), Task(some, (0,), (0,), 50, 10)])
    for _ in range(50):
        jobs.do()
    beginnings = [100 // 10 * part // threads * 10 for part in range(threads)]
    found = np.flatnonzero(np.concatenate((asked[1, :50], asked[2, :50])))
    assert not asked[0].any()
    assert 0 in found
    assert set(found) <= set(beginnings)
