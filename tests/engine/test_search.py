"""Search by attention: what heads look up, against their attention key by key, and a session that does not change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import (
    Generation,
    RetrievalParams,
    RetrievalReport,
    SamplingParams,
    Search,
    SessionBusy,
    SessionNotFound,
    SessionTooLong,
    Step,
)
from engine.tally import Lookup
from tests.engine.recorded import Case, Recorded, bench_of
from tests.engine.running import Request, Running, running
from tests.models import random_tokens

SMALL: dict[str, Any] = {"block_size": 8, "recent_blocks": 2, "blocks_per_head": 3}
CASES: dict[str, Case] = {
    "chosen": ("llama", {}, {"landmarks": "moments"}),
    "trained": ("landmarks", {}, {}),
    "windows": ("gemma2", {}, {"landmarks": "moments"}),
}
TEXT, QUERY = random_tokens(203, seed=1), random_tokens(9, seed=2)


@pytest.fixture(params=["trained", "absolute", "bounded"])
def run(request: pytest.FixtureRequest, tiny_folder: Path, landmark_folder: Path) -> Iterator[Running]:
    trained = request.param == "trained"
    config = {} if trained else {**SMALL, "positions": request.param}
    with running(landmark_folder if trained else tiny_folder, **config) as run:
        yield run


def submit(run: Running, session: str, query: list[int] = QUERY, **options: Any) -> Request:
    search = Search(0, len(query))
    retrieval = RetrievalParams(passages=options.pop("passages", 100), **options)
    name = str(next(run._ids))
    request = Request(Generation(name, tuple(query), SamplingParams(max_tokens=0), retrieval, session, search=search))
    run.engine.submit(request.generation, request.deliver)
    return request


def look(run: Running, session: str, query: list[int] = QUERY, **options: Any) -> RetrievalReport:
    report = submit(run, session, query, **options).result().end.retrieval
    assert report is not None
    return report


def told(run: Running, tokens: list[int]) -> str:
    session = run.engine.create_session("").id
    run.ask(tokens, session=session, max_tokens=0)
    return session


def beyond(recorded: Recorded, first: int) -> dict[int, float]:
    """What counts of each block, for the positions from `first` on."""
    bench = recorded.bench
    groups, sinks = 4 // bench.layout.kv_heads, bench.settings.sink_blocks
    counted: defaultdict[int, float] = defaultdict(float)
    always: defaultdict[tuple[int, int, int], list[float]] = defaultdict(list)
    for (layer, position), chosen in recorded.fetched.items():
        for head, blocks in enumerate(chosen.tolist() if position >= first else []):
            shares: defaultdict[int, float] = defaultdict(float)
            for query in range(head * groups, (head + 1) * groups):
                masses = recorded.masses(layer, position, query)
                whole = sum(masses[block] for block in recorded.read(layer, position, query))
                for block in {*blocks, *range(sinks)} - {-1}:
                    shares[block] += masses[block] / whole
            equal = sum(shares[block] for block in blocks if block >= 0) / len(blocks)
            for block in {*blocks} - {-1}:
                counted[block] += max(0.0, shares[block] - equal)
            for block in range(sinks):
                always[layer, head, block].append(shares[block])
    for (_, _, block), masses in always.items():
        counted[block] += sum(max(0.0, mass - sum(masses) / len(masses)) for mass in masses)
    return counted


@pytest.mark.parametrize("name", CASES)
def test_what_counts_is_what_a_head_gives_a_block_beyond_any(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(CASES[name], tmp_path, {"block_size": 8, "recent_blocks": 1, "landmark_dtype": "float32"})
    recorded, session = Recorded(bench, monkeypatch), bench.session()
    session.append([*TEXT, *QUERY])
    size, last = bench.layout.text_per_block, len(session.tokens)
    held = len(TEXT) // size * size
    tally = Lookup(held)
    for end in (100, held, held + 3, last):  # in two steps
        span = bench.span(session, end, fetch=3)
        bench.runner.run(Step([replace(span, tally=tally) if end > held else span]))
    expected = beyond(recorded, bench.layout.positions(held))
    found = tally._beyond()
    for block in {*found, *expected}:
        assert found.get(block, 0.0) == pytest.approx(expected.get(block, 0.0), rel=1e-3, abs=1e-3), block
    report, inside = tally.report(bench.layout, 100), [block for block in found if block * size < held and found[block]]
    whole = sum(found[block] for block in inside)
    best = [block for block in inside if found[block] >= whole / len(inside)]
    told = {block for passage in report.passages for block in range(passage.start // size, -(-passage.end // size))}
    assert told == {block for found in best for block in (found, found + 1) if block * size < held}
    assert sum(p.share for p in report.passages) == pytest.approx(sum(found[block] for block in best) / whole)


def test_few_blocks_are_looked_up_without_a_choice(run: Running) -> None:
    """All of them are read, and those that are told apart by the query still come first."""
    assert look(run, told(run, TEXT[:30])).passages


def test_the_session_does_not_change(run: Running) -> None:
    session = told(run, TEXT)
    before = run.engine.get_session(session, ""), run.engine.session_turns(session, "")
    report = look(run, session)
    assert report.passages
    assert all(0 <= passage.start < passage.end <= len(TEXT) for passage in report.passages)
    assert (run.engine.get_session(session, ""), run.engine.session_turns(session, "")) == before
    assert run.engine.session_tokens(session, "") == TEXT
    request = run.ask([9], session=session)
    assert request.tokens() == run.ask([*TEXT, 9]).tokens()
    run.check()


def test_a_search_is_the_same_in_any_steps_and_beside_any_work(
    run: Running, tiny_folder: Path, landmark_folder: Path
) -> None:
    session = told(run, TEXT)
    alone = look(run, session, TEXT[50:90])
    run.gate.close()
    other, third = run.submit(TEXT[::-1]), submit(run, session, TEXT[50:90])
    run.gate.wait()
    going_on = run.submit([9], session=session)  # the session is not held back by who looks something up in it
    run.gate.open()
    beside = third.result().end.retrieval
    going_on.result()
    other.result()
    assert beside is not None
    assert [(p.start, p.end) for p in beside.passages] == [(p.start, p.end) for p in alone.passages]
    assert [p.share for p in beside.passages] == pytest.approx([p.share for p in alone.passages], abs=1e-4)


def test_what_cannot_be_looked_up_is_refused(run: Running) -> None:
    session = told(run, TEXT)
    with pytest.raises(SessionNotFound):
        look(run, "unknown")
    with pytest.raises(SessionTooLong):
        look(run, session, [9] * run.engine.description.max_session_tokens)
    run.gate.close()
    request = run.submit([9], session=session)
    run.gate.wait()
    with pytest.raises(SessionBusy):
        look(run, session)
    run.gate.open()
    request.result()


def test_a_cancelled_search_leaves_nothing(run: Running) -> None:
    session = told(run, TEXT)
    run.gate.close()
    other = run.submit(TEXT[::-1])
    run.gate.wait()
    waiting = submit(run, session)
    run.cancel(waiting)
    assert waiting.result().end.reason == "cancelled"
    assert not run.engine.get_session(session, "").busy
    run.gate.open()
    other.result()
    run.check()


def test_nothing_is_found_in_nothing(run: Running) -> None:
    assert look(run, run.engine.create_session("").id).passages == ()
