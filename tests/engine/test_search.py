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
PAD = 7
TEXT, QUERY = random_tokens(203, seed=1), random_tokens(9, seed=2)


@pytest.fixture(params=["trained", "absolute", "bounded"])
def run(request: pytest.FixtureRequest, tiny_folder: Path, landmark_folder: Path) -> Iterator[Running]:
    trained = request.param == "trained"
    config = {} if trained else {**SMALL, "positions": request.param}
    with running(landmark_folder if trained else tiny_folder, **config) as run:
        yield run


def submit(run: Running, session: str, query: list[int] = QUERY, **options: Any) -> Request:
    search = Search(0, len(query), PAD)
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


@pytest.mark.parametrize("name", CASES)
def test_what_decided_heads_read_counts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each head's attention to a block, times the block's part of what the head fetched for this token."""
    bench = bench_of(CASES[name], tmp_path, {"block_size": 8, "recent_blocks": 1, "landmark_dtype": "float32"})
    recorded, session = Recorded(bench, monkeypatch), bench.session()
    session.append([*TEXT, *QUERY])
    held, last = len(TEXT) // bench.layout.text_per_block * bench.layout.text_per_block, len(session.tokens)
    tally = Lookup(held)
    for end in (100, held, last):
        span = bench.span(session, end, fetch=3)
        bench.runner.run(Step([replace(span, tally=tally) if end == last else span]))
    expected: defaultdict[int, float] = defaultdict(float)
    groups, first = 4 // bench.layout.kv_heads, bench.layout.positions(held)
    for (layer, position), chosen in recorded.fetched.items():
        if position < first:
            continue
        for head, blocks in enumerate(chosen.tolist()):
            shares: defaultdict[int, float] = defaultdict(float)
            for query in range(head * groups, (head + 1) * groups):
                masses = recorded.masses(layer, position, query)
                whole = sum(masses[block] for block in recorded.read(layer, position, query))
                for block in {*blocks} - {-1}:
                    shares[block] += masses[block] / whole
            together = sum(shares.values())
            for block, share in shares.items():
                expected[block] += share * share / together
    assert {block for block, mass in tally.blocks.items() if mass > 1e-3} <= set(expected)
    for block, mass in expected.items():
        assert tally.blocks[block] == pytest.approx(mass, rel=1e-3, abs=1e-4)
    report = tally.report(bench.layout, 100)
    assert sum(passage.share for passage in report.passages) == pytest.approx(1.0)
    assert all(passage.end <= held for passage in report.passages)


def test_the_session_does_not_change(run: Running) -> None:
    session = told(run, TEXT)
    before = run.engine.get_session(session, ""), run.engine.session_turns(session, "")
    report = look(run, session)
    assert report.passages
    assert all(0 <= passage.start < passage.end <= len(TEXT) for passage in report.passages)
    assert sum(passage.share for passage in report.passages) == pytest.approx(1.0)
    assert (run.engine.get_session(session, ""), run.engine.session_turns(session, "")) == before
    assert run.engine.session_tokens(session, "") == TEXT
    request = run.ask([9], session=session)
    assert request.tokens() == run.ask([*TEXT, 9]).tokens()
    run.check()


def test_an_end_of_the_session_is_looked_up_like_the_rest(run: Running) -> None:
    """Blocks that were recent for the session's own next token are not for the query."""
    found = {passage.end for passage in look(run, told(run, TEXT), TEXT[-24:], blocks_per_head=4096).passages}
    assert len(TEXT) in found


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
