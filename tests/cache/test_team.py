"""Jobs that threads share: each number once, one job after the other, for any number of leaders and helpers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from cache import job, kernels, together

team = kernels("team")


def count_up(arguments: int, first: int, last: int) -> None:
    for number in range(first, last):
        place = arguments + 8 * number
        team.write(place, team.read(place) + 1)


def double(arguments: int, first: int, last: int) -> None:
    for number in range(first, last):
        place = arguments + 8 * number
        team.write(place, 2 * team.read(place))


@pytest.fixture(autouse=True, params=[1, 2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def test_each_number_once_and_jobs_in_order() -> None:
    numbers, up, twice = np.zeros(1000, np.int64), job(count_up), job(double)
    at = numbers.ctypes.data
    jobs = np.array([[up, at, 0, 1000, 7], [twice, at, 0, 1000, 100], [up, at, 10, 999, 1]])
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
        jobs = np.array([[up, numbers.ctypes.data, 0, 300, 13]])
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
    jobs = np.array([[up, numbers.ctypes.data, 0, 10, 1]])
    waiter = threading.Event()
    for turn in range(3):
        together(jobs.ctypes.data)
        assert (numbers == turn + 1).all()
        waiter.wait(0.02)
