"""A request's own way to read belongs to its tokens: whoever comes before or after, they have the same keys and values.

Answers, with their log-probabilities, are compared with those of an engine that has seen nothing else.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import RetrievalParams, Span, Step, Told
from tests.engine.durable import READING
from tests.engine.running import Request, Running, running
from tests.models import Bench, random_tokens

PLAIN, ONE, ALL = RetrievalParams(), RetrievalParams(blocks_per_head=1), RetrievalParams(exact=True)
PART, RAISED = RetrievalParams(top_p=0.5), RetrievalParams(min_mass=1.0)
ASKED = [PLAIN, ONE, ALL, PART, RAISED]
TEXT, MORE = random_tokens(150, seed=1), random_tokens(40, seed=2)
EXACT: dict[str, Any] = {"landmark_dtype": "float32", "audit_rate": 0.0}
Start = Callable[..., Running]


@pytest.fixture(params=["chosen", "trained"])
def start(request: pytest.FixtureRequest, tiny_folder: Path, landmark_folder: Path) -> Iterator[Start]:
    """Starts engines that end with the test."""
    folder = landmark_folder if request.param == "trained" else tiny_folder
    opened = []

    def start(**config: Any) -> Running:
        context = running(folder, **{**READING[request.param], **EXACT, **config})
        opened.append(context)
        return context.__enter__()

    yield start
    for context in opened:
        context.__exit__(None, None, None)


def told(request: Request) -> torch.Tensor:
    """Each token of the answer and what it and its rivals weigh: (tokens, 1 + rivals)."""
    return torch.tensor([[token.token, *(logprob for _, logprob in token.top_logprobs)] for token in request.drawn()])


def ask(run: Running, tokens: list[int], retrieval: RetrievalParams, session: str | None = None) -> Request:
    return run.ask(tokens, session=session, retrieval=retrieval, max_tokens=6, logprobs=5)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("order", [ASKED, ASKED[::-1]])
def test_prompts_share_only_what_is_read_alike(start: Start, order: list[RetrievalParams]) -> None:
    alone, run = start(prefix_cache=False), start()
    expected = {asked: told(ask(alone, TEXT, asked)) for asked in order}
    assert not same(expected[PLAIN], expected[ONE])
    assert not same(expected[PLAIN], expected[ALL])
    for asked in order:
        first, second = (ask(run, TEXT, asked) for _ in range(2))
        assert same(told(first), expected[asked])
        assert same(told(second), expected[asked])
        assert second.end.usage.cached_tokens >= len(TEXT) - 8
        if asked in (ONE, ALL, PART):
            assert first.end.usage.cached_tokens == 0


@pytest.mark.parametrize("order", [[PLAIN, ONE, PLAIN], [ONE, ALL, PART], [RAISED, PLAIN, ONE]])
@pytest.mark.parametrize("file", ["kv", "text", None])
def test_a_session_is_computed_again_as_it_was_read(
    start: Start, order: list[RetrievalParams], file: str | None, tmp_path: Path
) -> None:
    """After it has lost its blocks, as a file with and without them, and after a restart."""
    alone, parts = start(prefix_cache=False), [TEXT, MORE, MORE[:3]]
    disk = {"disk_kv_path": str(tmp_path / "store"), "disk_kv_bytes": 64 << 20}
    run = start(**disk)
    sessions = [each.engine.create_session("").id for each in (alone, run)]
    for part, asked in zip(parts[:2], order[:2], strict=True):
        answers = [told(ask(each, part, asked, session)) for each, session in zip((alone, run), sessions, strict=True)]
        assert same(*answers)
    if file is not None:
        sent = run.engine.export_session(sessions[1], "", told=Told(), kv=file == "kv")
        (tmp_path / "file").write_bytes(sent.read(1 << 30))
        sent.close()
        run.engine.stop()
        run = start()
        info, restored, _ = run.engine.import_session(tmp_path / "file", "", told=Told())
        sessions[1] = info.id
        assert bool(restored) == (file == "kv")
    else:
        run.engine.stop()
        run = start(**disk)
        with run.engine._changed:
            assert run.engine._registry.evict()
    answers = [
        told(ask(each, parts[2], order[2], session)) for each, session in zip((alone, run), sessions, strict=True)
    ]
    assert same(*answers)


def test_after_a_restart_blocks_of_every_reading_are_used(start: Start, tmp_path: Path) -> None:
    disk = {"disk_kv_path": str(tmp_path / "store"), "disk_kv_bytes": 64 << 20}
    run = start(**disk)
    session = run.engine.create_session("").id
    for asked in ASKED:
        ask(run, MORE, asked, session)
    length = len(run.engine.session_tokens(session, ""))
    fork = run.engine.fork_session(session, "").id
    run.engine.rewind_session(fork, "", tokens=100)
    ask(run, MORE, PLAIN, fork)
    run.engine.stop()
    run = start(**disk)
    assert ask(run, [9], PLAIN, session).end.usage.cached_tokens >= length - 8
    assert ask(run, [9], PLAIN, fork).end.usage.cached_tokens >= 140 - 8


def test_tokens_of_one_step_read_each_as_its_request_asked(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle gives spans their numbers by hand."""
    reading = {**READING["chosen"], **EXACT}
    bench, fetched = Bench(tiny_folder, **reading), [(0, 150, 3), (150, 190, 1), (190, 191, 3)]
    by_hand = bench.session()
    by_hand.append([*TEXT, *MORE, 9])
    for _, end, fetch in fetched:
        logits = bench.runner.run(Step([bench.span(by_hand, end, fetch)]))
    expected = logits[-1].log_softmax(-1).topk(5)
    with running(tiny_folder, **reading) as run:
        name = run.engine.create_session("").id
        for tokens, asked in ((TEXT, PLAIN), (MORE, ONE)):
            run.ask(tokens, session=name, retrieval=asked, max_tokens=0)
        session = run.engine._registry.get(name, "")
        assert session is not None
        with run.engine._changed:
            run.engine._registry._rewind(session, 0)
        spans, compute = list[Span](), run.engine._runner.run

        def noted(step: Step, rows: list[int]) -> torch.Tensor:
            spans.extend(step.spans)
            return compute(step, rows)

        monkeypatch.setattr(run.engine._runner, "run", noted)
        answer = run.ask([9], session=name, max_tokens=1, logprobs=5).drawn()[0]
    assert [(span.start, span.end, span.blocks_per_head) for span in spans] == fetched
    assert [token for token, _ in answer.top_logprobs] == expected.indices.tolist()
    assert torch.allclose(torch.tensor([weight for _, weight in answer.top_logprobs]), expected.values, atol=1e-4)


def test_folders_that_do_not_tell_readings_open_and_are_used(start: Start, tmp_path: Path) -> None:
    disk = {"disk_kv_path": str(tmp_path / "store"), "disk_kv_bytes": 64 << 20}
    run = start(**disk)
    session = run.engine.create_session("").id
    ask(run, TEXT, PLAIN, session)
    run.engine.stop()
    with contextlib.closing(sqlite3.connect(tmp_path / "store" / "catalogue.sqlite")) as older:
        older.executescript("DROP TABLE readings; PRAGMA user_version = 2")
    run = start(**disk)
    assert ask(run, [9], ONE, session).end.usage.cached_tokens >= len(TEXT) - 8
    run.engine.stop()
    assert ask(start(**disk), [9], PLAIN, session).end.usage.cached_tokens >= len(TEXT)


def test_what_was_read_in_many_ways_is_computed_again_together(start: Start) -> None:
    """A step takes one run of alike tokens after the other, but for one of a single token, which goes alone."""
    alone, run, sizes = start(), start(), [7] * 12 + [1] + [9] * 12
    pieces = [random_tokens(size, seed=number) for number, size in enumerate(sizes)]
    sessions = [each.engine.create_session("").id for each in (alone, run)]
    for number, piece in enumerate(pieces):
        for each, session in zip((alone, run), sessions, strict=True):
            each.ask(piece, session=session, retrieval=ASKED[number % 4], max_tokens=0)
    lost = run.engine._session(sessions[1], "")
    with run.engine._changed:
        run.engine._registry._rewind(lost, 0)
    before = len(run.gate.reports)
    again = told(ask(run, [9, 8], PLAIN, sessions[1]))
    assert same(again, told(ask(alone, [9, 8], PLAIN, sessions[0])))
    reading = [report for report in run.gate.reports[before:] if report.phase == "prefill"]
    assert sum(report.prefill_tokens for report in reading) == sum(sizes) + 2
    assert len(reading) == 3
