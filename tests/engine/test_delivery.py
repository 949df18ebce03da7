"""Who takes events learns when a step has told all of them."""

from __future__ import annotations

import threading
from pathlib import Path

from engine import EngineConfig, Event, Finished, Generation, SamplingParams, Token, load_engine

TOKENS = 6


def test_takers_are_told_once_a_step_has_told_all(tiny_folder: Path) -> None:
    engine = load_engine(str(tiny_folder), EngineConfig(kv_bytes=8 << 20))
    steps: list[list[Event]] = [[]]
    ended = threading.Event()

    def told() -> None:
        steps.append([])
        if sum(isinstance(event, Finished) for step in steps for event in step) == 3:
            ended.set()

    sampling = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
    engine.start()
    engine.submit(Generation("a", (10, 11, 12), sampling, n=3), lambda event: steps[-1].append(event), told)
    assert ended.wait(30)
    engine.stop()
    drawn = [sum(isinstance(event, Token) for event in step) for step in steps]
    assert sum(drawn) == 3 * TOKENS
    assert len([count for count in drawn if count]) <= TOKENS + 2, "the first choice is a step ahead of its branches"
    assert not steps[-1], "nothing came after the last word"


def test_a_generation_that_waits_tells_its_end(tiny_folder: Path) -> None:
    engine = load_engine(str(tiny_folder), EngineConfig(kv_bytes=8 << 20))  # does not run
    came: list[object] = []
    engine.submit(Generation("a", (10, 11, 12), SamplingParams()), came.append, lambda: came.append("told"))
    engine.cancel("a")
    assert [type(each) for each in came] == [Finished, str]
    engine.stop()
