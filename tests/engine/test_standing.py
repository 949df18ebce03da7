"""Where queries stand, by one call of a kernel: checked against what plain Python says of each query."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine.attention.plans import Plan, Reach, Standing
from engine.rotation import MOST_PAGES, PAGE, Rotation

SIZE, HEADS, SINKS = 16, 3, 2
REACH = Reach(recent=2, shared=2, fetch=4)
FREQUENCIES = 10_000.0 ** -(torch.arange(4, dtype=torch.float64) / 4)


def span(first: int, count: int, seed: int) -> Any:
    """Positions first, …, first + count - 1 of a session whose blocks lie anywhere."""
    slots = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
    session = SimpleNamespace(slots_between=lambda start, end: slots[start:end], slots=slots)
    return SimpleNamespace(session=session, first=first, token_ids=[7] * count)


def plan(spans: list[Any], rotation: Rotation, *, bounded: bool, rows: Any = None) -> Plan:
    positions = np.array([each.first + i for each in spans for i in range(len(each.token_ids))])
    where = slice(0, len(positions)) if rows is None else rows
    return Plan(where, tuple(spans), positions, REACH, rotation, SIZE, bounded)


def same(standing: Standing, given: Plan) -> None:
    """A standing says of each query what it should."""
    selected = 0
    whose: list[Any] = [each for each in given.spans for _ in each.token_ids]
    for t, (position, mine) in enumerate(zip(given.positions.tolist(), whose, strict=True)):
        block, offset = divmod(position, SIZE)
        end = block - REACH.recent
        assert (standing.positions[t], standing.offsets[t], standing.ends[t]) == (position, offset, end)
        read = [number for number in standing.fixed[t].tolist() if number >= 0]
        assert sorted(read) == sorted({*range(min(REACH.shared, max(0, end))), *range(max(0, end), block + 1)})
        latest = list(range(end - 1, SINKS - 1, -1))[: REACH.fetch]
        assert standing.latest[t].tolist() == latest + [-1] * (4 - len(latest))
        selected += len(latest)
        slot = int(mine.session.slots[block])
        assert standing.own[:, t].tolist() == [slot * HEADS + head for head in range(HEADS)]
        distance = (REACH.recent + 1) * SIZE + offset if given.bounded else position
        for turns, at in ((standing.far_turns, distance), (standing.own_turns, offset)):
            expected = torch.stack(given.rotation.turns(torch.tensor([at]), torch.float32))[:, 0]
            assert np.array_equal(turns[:, t], expected)
        if given.rotation.frequencies is not None:
            angles = position * given.rotation.frequencies
            assert np.allclose(standing.turns[t], torch.stack((angles.cos(), angles.sin())), atol=1e-6)
    assert standing.selected == selected


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("rotation", [(FREQUENCIES, False), (FREQUENCIES, True), (None, False)], ids=str)
def test_queries_stand_where_plain_python_says(rotation: tuple[Any, bool], bounded: bool) -> None:
    turning = Rotation(*rotation)
    early = plan([span(3, 1, 1), span(900, 2, 2), span(PAGE - 1, 2, 3)], turning, bounded=bounded)
    late = plan([span(77, 1, 4), span(5_000, 2, 5), span(31, 2, 1)], turning, bounded=bounded)
    standing = Standing(early, HEADS, SINKS)
    same(standing, early)
    standing.take(late)
    same(standing, late)
    same(Standing(late, HEADS, SINKS), late)


def test_many_queries_of_one_session() -> None:
    given = plan([span(PAGE // 2, 3 * PAGE, 1)], Rotation(FREQUENCIES), bounded=False)
    same(Standing(given, HEADS, SINKS), given)


def test_rows_are_those_of_the_plan() -> None:
    turning = Rotation(FREQUENCIES)
    spans = [span(3, 1, 1), span(40, 1, 2)]
    standing = Standing(plan(spans, turning, bounded=True, rows=slice(1, 3)), HEADS, SINKS)
    assert standing.rows.tolist() == [1, 2]
    standing.take(plan(spans, turning, bounded=True, rows=slice(4, 6)))
    assert standing.rows.tolist() == [4, 5]
    standing.take(plan(spans, turning, bounded=True, rows=torch.tensor([0, 7])))
    assert standing.rows.tolist() == [0, 7]
    standing.take(plan(spans, turning, bounded=True, rows=slice(4, 6)))
    assert standing.rows.tolist() == [4, 5]


def test_a_page_is_the_same_whenever_it_is_made_and_few_are_kept() -> None:
    turning = Rotation(FREQUENCIES)
    first = turning.page(3).turns
    for number in range(2 * MOST_PAGES):
        turning.page(number + 4)
    assert len(turning._pages) == MOST_PAGES
    assert np.array_equal(turning.page(3).turns, first)
    apart = torch.stack(turning.turns(torch.arange(3 * PAGE, 4 * PAGE), torch.float32), 1)
    assert np.array_equal(first, apart)
