"""Sessions larger than the device's memory: answers are those of one that was never moved, and budgets hold.

On the CPU itself, where a window lies over other memory of it, and on a pretended card; copies come as late as a device
may bring them (tests/cache/late.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cache import WindowTier
from cache.packed import Packed
from engine import Engine, EngineConfig, StepReport, load_model
from engine.device import place
from engine.errors import InvalidParameter
from tests.cache.late import LateCopies
from tests.engine.running import Gate, Running
from tests.models import random_tokens
from tests.pretended import CARD, Card

READING: dict[str, Any] = {"block_size": 8, "recent_blocks": 1, "sink_blocks": 1, "blocks_per_head": 3}
SMALL: dict[str, Any] = {"step_tokens": 64, "max_running": 2, "dtype": "float32", "prefix_cache": False}
BLOCK = 3 * 2 * 2 * 8 * 16 * 4
"""Bytes of the tiny model's."""
KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "kernels": (False, {}),
    "reference": (False, {"landmarks": "box-mean", "landmark_dtype": "float32"}),
    "card": (True, {"landmarks": "box-mean", "landmark_dtype": "float32"}),
    "card, 4 bits": (True, {"landmarks": "box-mean", "kv_bytes": 36 * BLOCK}),
}


class Windowed:
    """An engine with a window of so many blocks over host memory, beside one that has room for everything."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, card: bool, config: dict[str, Any]) -> None:
        self.engines: list[Engine] = []
        if card:  # kernels round queries, too
            monkeypatch.setattr("cache.index.ByRow", Packed)
            monkeypatch.setattr("cache.index.ByChannel", Packed)
        whole = load_model(str(folder), "float32")
        reading = {**READING, **SMALL, **config}
        self.alone = self.start(whole, {**reading, "kv_bytes": 512 * BLOCK, "disk_kv_path": None})
        monkeypatch.setattr("engine.budgets.copies_for", LateCopies)
        if card:
            pretend(monkeypatch)
            with Card():
                self.run = self.start(load_model(str(folder), "float32", CARD), reading)
        else:
            self.run = self.start(whole, reading)

    def start(self, model: Any, config: dict[str, Any]) -> Running:
        gate = Gate()
        engine = Engine(model, EngineConfig(**config), observe=gate)
        engine.start()
        self.engines.append(engine)
        return Running(engine, gate)

    @property
    def tier(self) -> WindowTier:
        tier = self.run.engine._store.tier
        assert isinstance(tier, WindowTier)
        return tier

    @property
    def reports(self) -> list[StepReport]:
        return self.run.gate.reports

    def same(self, tokens: list[int], count: int, **more: Any) -> None:
        found = self.run.ask(tokens, max_tokens=count, **more).tokens()
        assert found == self.alone.ask(tokens, max_tokens=count, **more).tokens()

    def close(self) -> None:
        for engine in self.engines:
            engine.stop()


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engines run on a card that is none."""
    loop = Engine._loop

    def inside(self: Engine) -> None:
        with Card():
            loop(self)

    monkeypatch.setattr(Engine, "_loop", inside)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1 << 30, 1 << 30))


@pytest.fixture(params=KINDS)
def windowed(
    request: pytest.FixtureRequest, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Windowed]:
    card, config = KINDS[request.param]
    budgets = {"kv_bytes": 48 * BLOCK, "host_kv_bytes": 256 * BLOCK}
    made = Windowed(tiny_folder, monkeypatch, card=card, config={**budgets, **config})
    yield made
    made.close()


SLOW_KINDS = [pytest.param(kind, marks=pytest.mark.slow) if KINDS[kind][0] else kind for kind in KINDS]
"""A pretended card looks at each call of torch, and a small window makes many."""


@pytest.mark.parametrize("windowed", SLOW_KINDS, indirect=True)
def test_answers_are_those_of_a_session_that_never_moved(windowed: Windowed) -> None:
    tier = windowed.tier
    assert tier._pages.frames < 33 * 6, "less than the session"
    windowed.same(random_tokens(260), 6)
    moved = sum(report.moved.get(("host", "device"), 0) for report in windowed.reports)
    assert moved > 0
    tiers = windowed.run.engine.stats().tiers
    assert list(tiers) == ["device", "host"]
    assert tiers["device"].used_bytes <= tiers["device"].capacity_bytes == tier.memory_bytes
    assert tiers["host"].capacity_bytes <= 256 * BLOCK


def test_sessions_go_on_beside_each_other_and_fork(windowed: Windowed) -> None:
    texts = [random_tokens(80, seed) for seed in (1, 2)]
    sessions = [(run.engine.create_session("").id, run.engine.create_session("").id) for run in both(windowed)]
    for turn in range(2):
        for number, text in enumerate(texts):
            found = [
                run.ask(text[: 80 - 30 * turn], session=names[number], max_tokens=4).tokens()
                for run, names in zip(both(windowed), sessions, strict=True)
            ]
            assert found[0] == found[1]
    forks = [run.engine.fork_session(names[0], "").id for run, names in zip(both(windowed), sessions, strict=True)]
    answers = [
        run.ask([7, 8, 9], session=name, max_tokens=4).tokens() for run, name in zip(both(windowed), forks, strict=True)
    ]
    assert answers[0] == answers[1]
    windowed.run.settle()
    windowed.run.engine._registry.check()


def both(windowed: Windowed) -> tuple[Running, Running]:
    return windowed.run, windowed.alone


def waits(folder: Path) -> tuple[list[int], int, int, int]:
    """An answer with room for fewer pages than a step reads; what was waited for, brought ahead, and used of that."""
    config = {**READING, **SMALL, "step_tokens": 16, "kv_bytes": 40 * BLOCK, "host_kv_bytes": 256 * BLOCK}
    engine = Engine(load_model(str(folder), "float32"), EngineConfig(**config), observe=(gate := Gate()))
    tier = engine._store.tier
    assert isinstance(tier, WindowTier)
    tier._pages.resize(4 * 6)  # three blocks beside the open one; the smallest budget has more
    engine.start()
    try:
        answer = Running(engine, gate).ask(random_tokens(200), max_tokens=20).tokens()
    finally:
        engine.stop()
    steps = [report for report in gate.reports if report.phase == "decode"]
    waited = sum(report.hits.get("host", 0) for report in steps)
    return answer, waited, sum(report.foreseen for report in steps), sum(report.guessed for report in steps)


def test_what_was_read_last_is_brought_up_before_it_is_asked_for(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, waited, foreseen, guessed = waits(tiny_folder)
    assert 0 < guessed <= foreseen
    monkeypatch.setattr(WindowTier, "prefetch", lambda *_: None)
    same, longer, *_ = waits(tiny_folder)
    assert same == answer
    assert waited < longer


# -- what an operator can set --------------------------------------------------------------------------------


def test_there_must_be_a_card() -> None:
    assert place("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert place("auto") == torch.device("cpu")
        with pytest.raises(InvalidParameter, match="device: cuda: 0 GPUs were found"):
            place("cuda")
    with pytest.raises(InvalidParameter, match="device: must be auto"):
        EngineConfig(device="tpu")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"kv_bytes": 10 * BLOCK, "host_kv_bytes": 256 * BLOCK}, "kv_bytes"),
        ({"kv_bytes": 64 * BLOCK, "host_kv_bytes": BLOCK}, "host_kv_bytes"),
    ],
)
def test_a_budget_that_is_too_small_is_refused_by_name(tiny_folder: Path, given: dict[str, int], name: str) -> None:
    with pytest.raises(InvalidParameter, match=f"^{name}: must hold"):
        Engine(load_model(str(tiny_folder), "float32"), EngineConfig(**{**READING, **SMALL, **given}))


def test_on_a_cpu_both_names_are_one_budget(tiny_folder: Path) -> None:
    model = load_model(str(tiny_folder), "float32")
    tiers = [
        Engine(model, EngineConfig(**{**READING, **SMALL, name: 64 * BLOCK}))._store.tier
        for name in ("kv_bytes", "host_kv_bytes")
    ]
    assert [(tier.name, tier.memory_bytes, type(tier).__name__) for tier in tiers] == [
        ("device", 64 * BLOCK, "DeviceTier")
    ] * 2
