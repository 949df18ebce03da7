"""The rules that the bench of evictions replays, on what can be counted by hand and by trying everything."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from bench.eviction import NeededLast, Numbers, Rule, least_often, longest_unused, markdown, parse, rows, share


def asked(*pages: int) -> list[Numbers]:
    return [np.array([page]) for page in pages]


def test_a_round_that_does_not_fit_pushes_itself_out() -> None:
    """The longest unused is what comes next; who knew that would keep all but one."""
    located = asked(*[0, 1, 2, 3] * 100)
    assert share(located, 4, longest_unused) == 1.0
    assert share(located, 3, longest_unused) == 0.0
    assert share(located, 3, NeededLast(located)) == pytest.approx(2 / 3, abs=0.01)


def test_what_is_used_often_stays() -> None:
    located = asked(*itertools.chain.from_iterable((0, 2 * n + 1, 2 * n + 2) for n in range(100)))
    assert share(located, 2, longest_unused) == 0.0
    assert share(located, 2, least_often) == pytest.approx(1 / 3, abs=0.01)


def test_what_is_located_together_stays_together() -> None:
    together = [np.array([0, 1]), np.array([2, 3])] * 8
    for rule in (longest_unused, least_often, NeededLast(together)):
        assert share(together, 4, rule) == 1.0
        assert share(together, 1, rule) <= 0.5


@pytest.mark.parametrize("seed", range(8))
def test_no_order_of_going_is_better_than_the_best(seed: int) -> None:
    chance = np.random.default_rng(seed)
    located = asked(*chance.integers(5, size=16).tolist())
    best = max(played(located, 3), key=lambda found: found)
    assert share(located, 3, NeededLast(located)) * 12 >= best - 0.5
    rules: tuple[Rule, ...] = (longest_unused, least_often)
    assert all(share(located, 3, rule) * 12 <= best + 0.5 for rule in rules)


def played(located: list[Numbers], pages: int) -> set[int]:
    """Hits behind the first quarter for every choice of what goes."""
    states = {(frozenset[int](), 0)}
    for at, each in enumerate(located):
        (page,) = each.tolist()
        states = {
            (kept, found + (page in here and at >= len(located) // 4))
            for here, found in states
            for kept in (
                [here | {page}] if len(here | {page}) <= pages else [(here - {gone}) | {page} for gone in here]
            )
        }
    return {found for _, found in states}


def test_a_small_record_is_replayed(tiny_folder: Path) -> None:
    options = parse(["--model", str(tiny_folder), "--count", "6", "--host", "64", "--steps", "0.5", "1", "1000"])
    found = rows(options, 900, 2)
    assert [row.steps for row in found] == [0.5, 1]
    assert all(row.longest_unused <= row.best and row.least_often <= row.best for row in found)
    assert markdown(found).count("\n") == 3
