"""How tokens are read, against a list with one entry for each token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cache import Reading, Readings

ASKED = st.sampled_from([None, None, Reading(3), Reading(None), Reading(3, 0.5)])
STEPS = st.lists(st.one_of(st.tuples(ASKED, st.integers(1, 9)), st.floats(0, 1)), max_size=12)


def built(steps: list[tuple[Reading | None, int] | float]) -> tuple[Readings, list[Reading | None]]:
    """Tokens that come with a reading, and cuts to a share of what there is."""
    readings, truth = Readings(), list[Reading | None]()
    for step in steps:
        if isinstance(step, float):
            del truth[round(step * len(truth)) :]
            readings.cut(len(truth))
        else:
            readings.begin(len(truth), step[0])
            truth += [step[0]] * step[1]
    return readings, truth


@given(STEPS, st.data())
def test_each_token_has_the_reading_that_it_came_with(
    steps: list[tuple[Reading | None, int] | float], data: st.DataObject
) -> None:
    readings, truth = built(steps)
    assert [readings.at(token) for token in range(len(truth))] == truth
    for token in range(len(truth)):
        end = readings.end(token, len(truth))
        assert set(truth[token:end]) == {truth[token]}
        assert end == len(truth) or truth[end] != truth[token]
    again, cut = Readings(readings.runs), data.draw(st.integers(0, len(truth)))
    again.cut(cut)
    assert again.runs + readings.since(cut) == readings.runs
    assert again.runs == built([(reading, 1) for reading in truth[:cut]])[0].runs, "one way to say it"


@given(STEPS, STEPS, st.integers(0, 20), st.integers(1, 8))
def test_blocks_that_are_read_otherwise_are_marked(
    one: list[tuple[Reading | None, int] | float],
    other: list[tuple[Reading | None, int] | float],
    first: int,
    size: int,
) -> None:
    (mine, truth), (yours, others) = built(one), built(other)
    last = first + size
    if min(len(truth), len(others)) >= last:
        assert (mine.mark(first, last) == b"") == (truth[first:last] == [None] * size)
        if truth[:last] == others[:last]:
            assert mine.mark(first, last) == yours.mark(first, last)
        elif truth[first:last] != others[first:last]:
            assert mine.mark(first, last) != yours.mark(first, last)
