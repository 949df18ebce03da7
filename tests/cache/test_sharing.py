"""Jobs over heads find their arguments as they were given, whoever does which head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cache import Shared, Tasks, kernels, threads_for

sharing = kernels("sharing")
KINDS = (
    sharing.array(np.float32, 2),
    sharing.array(np.uint16, 3),
    sharing.WHOLE,
    sharing.REAL,
    sharing.FLAG,
    sharing.array(np.float64, 2),
)
unpack = sharing.unpacker(*KINDS)
HEADS = 7


def add_up(arguments: int, first: int, last: int) -> None:
    rows, halves, whole, real, flag, sums = unpack(arguments)
    for head in range(first, last):
        for i in range(rows.shape[1]):
            sums[head, 0] += rows[head, i]
        for i in range(halves.shape[1]):
            for j in range(halves.shape[2]):
                sums[head, 1] += (i + 1) * (10 * j + 1) * halves[head, i, j]
        sums[head, 2] += whole
        sums[head, 3] += real if flag else -real


@pytest.fixture(scope="module")
def job() -> Shared:
    made: Shared = sharing.shared(add_up, *KINDS)
    return made


@pytest.fixture(autouse=True, params=[1, 2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def arguments(whole: int, real: float, flag: bool) -> tuple[Any, ...]:
    random = np.random.default_rng(whole & 0xFF)
    rows = random.normal(size=(HEADS, 5)).astype(np.float32)
    halves = random.integers(0, 1 << 16, (HEADS, 3, 4)).astype(np.uint16)
    return rows, halves, whole, real, flag, np.zeros((HEADS, 4))


@pytest.mark.parametrize("each", [1, 1 << 20], ids=["not worth a thread", "by all threads"])
def test_arguments_arrive_and_each_head_is_done_once_for_each_job(job: Shared, each: int) -> None:
    several = [arguments(-3, 0.1, True), arguments(1 << 40, -2.5e-9, False)]
    for _ in range(20):
        for each_sums in several:
            each_sums[5][:] = 0
        Tasks([job.task(mine, HEADS) for mine in several]).do(threads_for(HEADS, each))
        for rows, halves, whole, real, flag, sums in several:
            weights = np.outer(np.arange(1, 4), 10 * np.arange(4) + 1)
            np.testing.assert_allclose(sums[:, 0], rows.astype(float).sum(1), rtol=1e-6, atol=1e-6)
            np.testing.assert_array_equal(sums[:, 1], (halves * weights).sum((1, 2)))
            np.testing.assert_array_equal(sums[:, 2:], [[whole, real if flag else -real]] * HEADS)


def test_arguments_may_be_changed_between_two_times(job: Shared) -> None:
    """Numbers, arrays of the same shape, and longer or shorter ones."""
    rows, halves, whole, real, flag, sums = arguments(5, 1.5, True)
    tasks = Tasks([job.task((rows, halves, whole, real, flag, sums), HEADS)] * 2)
    tasks.do()
    others, longer, fresh = rows + 1, np.concatenate((rows, rows)) + 2, np.zeros((HEADS, 4))
    tasks.put(1, 0, others.ctypes.data)
    tasks.put(1, 2, 7)
    tasks.put(1, 5, fresh.ctypes.data)
    sums[:] = 0
    tasks.do()
    np.testing.assert_allclose(sums[:, 0], rows.astype(float).sum(1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(fresh[:, 0], others.astype(float).sum(1), rtol=1e-6, atol=1e-6)
    assert (sums[:, 2] == 5).all()
    assert (fresh[:, 2] == 7).all()
    tasks.put_arrays(0, 0, [longer])
    tasks.do()
    np.testing.assert_allclose(sums[:, 0], (rows + longer[:HEADS]).astype(float).sum(1), rtol=1e-6, atol=1e-6)


def test_what_would_be_misread_is_refused(job: Shared) -> None:
    rows, halves, *others = arguments(1, 1.0, True)
    with pytest.raises(AssertionError, match="misread"):
        job.task((rows.astype(np.float64), halves, *others), HEADS)
    with pytest.raises(AssertionError, match="misread"):
        job.task((rows, halves.transpose(0, 2, 1), *others), HEADS)
