"""Prompts that are read on a thread of their own beside decoding: the same answers, and nothing is lost on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine import EngineError, Failed, Finished
from tests.engine.running import Request, Running, running
from tests.models import random_tokens

DECODING = 3


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(landmark_folder: Path) -> Iterator[Running]:
    with running(landmark_folder, threads=2, step_tokens=256, kv_bytes=64 << 20, prefix_cache=False) as started:
        yield started


def decode(run: Running, max_tokens: int = 4000) -> list[Request]:
    """So many answers that have begun."""
    asked = [run.submit(random_tokens(20, seed), max_tokens=max_tokens) for seed in range(DECODING)]
    while any(not each.drain() or not each.drawn() for each in asked):
        time.sleep(0.001)
    return asked


def stop(run: Running, asked: list[Request]) -> None:
    for each in asked:
        run.cancel(each)
        assert each.result().end.reason == "cancelled"
    run.check()


def test_decoding_goes_on_while_a_part_is_read(run: Running) -> None:
    asked = decode(run)
    begun = len(run.gate.reports)
    run.ask(random_tokens(1500), max_tokens=1)
    steps = run.gate.reports[begun:]
    parts = [report for report in steps if report.prefill_tokens]
    assert sum(report.prefill_tokens for report in parts) == 1500
    assert all(report.decode_tokens == 0 for report in parts), "a step reads and decodes at once"
    assert sum(report.decode_tokens for report in steps) >= DECODING * len(parts)
    stop(run, asked)


def answers(folder: Path, threads: int) -> list[list[int]]:
    """What prompts of all lengths say that come while others decode."""
    with running(folder, threads=threads, step_tokens=64, prefix_cache=False, max_session_tokens=2000) as run:
        asked = [run.submit(random_tokens(30, 1), max_tokens=300)]
        while len(asked[0].drain()) < 4:
            time.sleep(0.001)
        asked += [run.submit(random_tokens(80 * seed, seed), max_tokens=12) for seed in range(1, 6)]
        return [each.result().tokens() for each in asked]


def test_answers_are_the_same_as_in_one_step(landmark_folder: Path) -> None:
    assert answers(landmark_folder, threads=2) == answers(landmark_folder, threads=1)


def test_what_is_cancelled_on_its_way_ends_when_it_has_come(run: Running) -> None:
    asked = decode(run)
    for seed in range(5):
        request = run.submit(random_tokens(3000, seed), max_tokens=5)
        while not run.engine._apart.reading:
            time.sleep(0.0005)
        run.cancel(request)
        assert request.result().end.reason == "cancelled"
    stop(run, asked)


def test_a_part_that_fails_fails_its_request_alone(run: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = decode(run)
    assert run.engine._apart._beside is not None

    def breaks(*_: object) -> None:
        raise ValueError("on its way")

    monkeypatch.setattr(run.engine._apart._beside._runner, "run", breaks)
    with pytest.raises(EngineError, match="on its way"):
        run.ask(random_tokens(1000))
    monkeypatch.undo()
    assert len(run.ask(random_tokens(1000), max_tokens=4).tokens()) == 4
    assert not any(isinstance(event, Failed | Finished) for each in asked for event in each.drain())
    stop(run, asked)


def test_stop_answers_what_is_on_its_way(run: Running) -> None:
    asked = [*decode(run), run.submit(random_tokens(3000), max_tokens=5)]
    while not run.engine._apart.reading:
        time.sleep(0.0005)
    run.engine.stop()
    assert [each.result().end.reason for each in asked] == ["cancelled"] * len(asked)


def test_one_thread_or_a_disk_reads_in_steps(landmark_folder: Path, tmp_path: Path) -> None:
    """What lies on a disk comes up for one pass at a time."""
    for settings in ({"threads": 1}, {"threads": 2, "disk_kv_path": str(tmp_path)}):
        with running(landmark_folder, **settings) as run:
            assert not run.engine._apart.reads
