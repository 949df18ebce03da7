"""Turns: where requests began and ended, whatever was cut off."""

from __future__ import annotations

import pytest

from cache import turns as module
from cache.turns import Turns


def spans(turns: Turns, tokens: int) -> list[tuple[int, int, int, int]]:
    return [(turn.index, turn.start, turn.answer, end) for turn, end in turns.with_ends(tokens)]


def turns_of(*begun: tuple[int, int]) -> Turns:
    turns = Turns()
    for start, answer in begun:
        turns.begin(start, answer, None)
    return turns


def test_a_turn_ends_where_the_next_one_begins() -> None:
    assert spans(turns_of((0, 5), (9, 9), (12, 20)), 20) == [(0, 0, 5, 9), (1, 9, 9, 12), (2, 12, 20, 20)]


def test_a_request_that_changed_nothing_does_not_count() -> None:
    turns = turns_of((0, 5), (9, 9))
    assert spans(turns, 9) == [(0, 0, 5, 9)]
    turns.begin(9, 11, None)
    assert spans(turns, 12) == [(0, 0, 5, 9), (1, 9, 11, 12)]


@pytest.mark.parametrize(("kept", "left"), [
    (20, [(0, 0, 5, 9), (1, 9, 12, 20)]),
    (12, [(0, 0, 5, 9), (1, 9, 12, 12)]),
    (10, [(0, 0, 5, 9), (1, 9, 10, 10)]),
    (9, [(0, 0, 5, 9)]),
    (3, [(0, 0, 3, 3)]),
    (0, []),
])  # fmt: skip
def test_a_cut_forgets_and_shortens(kept: int, left: list[tuple[int, int, int, int]]) -> None:
    turns = turns_of((0, 5), (9, 12))
    turns.cut(kept)
    assert spans(turns, kept) == left
    turns.begin(kept, kept + 1, None)
    assert [turn.index for turn in turns] == list(range(len(left) + 1))


def test_only_the_latest_are_remembered_by_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TURNS", 3)
    turns = turns_of(*((start, start + 1) for start in range(8)))
    assert spans(turns, 8) == [(5, 5, 6, 6), (6, 6, 7, 7), (7, 7, 8, 8)]
    assert turns.oldest == 5
    turns.cut(2)
    turns.begin(2, 3, None)
    assert [turn.index for turn in turns] == [5]


def test_what_changed_is_told_once() -> None:
    turns = turns_of((0, 1), (3, 4))
    assert [turn.index for turn in turns.untold()] == [0, 1]
    turns.told()
    assert turns.untold() == []
    turns.begin(4, 5, None)
    turns.cut(4)
    turns.begin(4, 6, None)
    assert [(turn.index, turn.answer) for turn in turns.untold()] == [(2, 6)]
    turns.told()
    turns.cut(2)
    turns.begin(2, 3, None)
    assert [turn.index for turn in turns.untold()] == [1]
    assert [turn.index for turn in turns.copy().untold()] == [0, 1]
