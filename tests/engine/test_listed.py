"""All layers in one list of jobs give the same bits and the same report as one layer after the other."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cache import DeviceTier
from engine import FusedAttention, Step, layers
from engine.audit import Audit
from engine.stats import StepReport
from engine.step import Span
from engine.tally import Tally
from engine.whole import QuickModel
from tests.engine.test_fused import BLOCKS, SETTINGS
from tests.models import FULL, SLIDING, Bench, random_tokens, save_model

DRAWN = 24
LENGTHS = (150, 7, 601, 90, 602)
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"num_key_value_heads": 4},
    "mistral": {"sliding_window": 20},
    "smollm3": {"no_rope_layers": [1, 0, 1], "layer_types": [FULL] * 3},
    "llama": {"layer_types": [SLIDING, FULL, SLIDING]},
}


@pytest.fixture(autouse=True)
def listed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers went through each step as one list; 0 for a step that was refused."""
    counts: list[int] = []
    original = FusedAttention.listed

    def counting(self: FusedAttention, scalings: dict[int, float], *given: Any) -> Any:
        found = original(self, scalings, *given)
        counts.append(0 if found is None else len(found.jobs))
        return found

    monkeypatch.setattr(FusedAttention, "listed", counting)
    return counts


def drawn(folder: Path, *, at_once: bool, **settings: Any) -> tuple[Tensor, list[StepReport]]:
    """Logits of sessions that decode together, forks among them, and what steps report."""
    bench = Bench(folder, fused=True, **settings)
    if not at_once:
        bench.runner._attention.listed = lambda *given: None  # type: ignore[method-assign]
    texts = [random_tokens(length + DRAWN, seed=length) for length in LENGTHS]
    sessions = [bench.session(str(i)) for i in range(len(texts))]
    for session, text in zip(sessions, texts, strict=True):
        bench.logits(session, text[:-DRAWN], [len(text) - DRAWN], 3)
    sessions.append(sessions[2].fork("fork"))
    logits, reports = [], []
    for turn in range(DRAWN):
        for session, text in zip(sessions, [*texts, texts[2]], strict=True):
            session.append([text[turn - DRAWN]])
        step = Step([bench.span(session, len(session.tokens), 3) for session in sessions])
        logits.append(bench.runner.run(step))
        reports.append(step.report)
    return torch.cat(logits), reports


def same(folder: Path, listed: list[int], **settings: Any) -> None:
    expected, told = drawn(folder, at_once=False, **settings)
    assert not any(listed)
    found, reports = drawn(folder, at_once=True, **settings)
    assert listed[-DRAWN + 1 :] == [3] * (DRAWN - 1), "steps with landmarks among them, but one in which a fork begins"
    assert torch.equal(found, expected)
    for mine, theirs in zip(reports, told, strict=True):
        assert (mine.queries, mine.blocks_selected, mine.hits) == (theirs.queries, theirs.blocks_selected, theirs.hits)
        assert (mine.retrieval_seconds > 0) == (theirs.retrieval_seconds > 0)


@pytest.mark.parametrize("kind", SETTINGS)
def test_whatever_the_settings(kind: str, tiny_folder: Path, listed: list[int]) -> None:
    same(tiny_folder, listed, **BLOCKS | SETTINGS[kind])


def test_tokens_with_landmarks_behind_them(tmp_path: Path, listed: list[int]) -> None:
    folder = save_model("llama", tmp_path / "trained", landmarks=True)
    same(folder, listed, landmark_dtype="int4")


def test_rows_that_are_wanted(tmp_path: Path, listed: list[int]) -> None:
    folder, text = save_model("llama", tmp_path / "trained", landmarks=True), random_tokens(230)
    bench = Bench(folder, fused=True, landmark_dtype="int4")
    found, whole = bench.session(), bench.session("whole")
    bench.logits(found, text, [200], 3)
    expected = bench.logits(whole, text, [200, *[1] * 30], 3)[200:]
    listed.clear()
    for each in range(30):
        span = bench.span(found, 201 + each, 3)
        assert torch.equal(bench.runner.run(Step([span]), [len(span.token_ids) - 1])[0], expected[each])
    assert listed == [3] * 30


def test_by_two_threads(tiny_folder: Path, listed: list[int]) -> None:
    torch.set_num_threads(2)
    same(tiny_folder, listed, **BLOCKS | SETTINGS["the rest"])
    torch.set_num_threads(1)


def in_turns(folder: Path, *, at_once: bool) -> tuple[list[Tensor], Bench]:
    """Logits of two sessions of which now one decodes and now the other; then the first one is forgotten."""
    bench = Bench(folder, fused=True, **BLOCKS, **SETTINGS["the rest"])
    if not at_once:
        bench.runner._attention.listed = lambda *given: None  # type: ignore[method-assign]
    sessions = [bench.session(str(length)) for length in (601, 640)]
    for session in sessions:
        bench.logits(session, random_tokens(int(session.id)), [int(session.id)], 3)
    found: list[Tensor] = []
    for token in random_tokens(2 * DRAWN, seed=1):
        session = sessions[len(found) % 2]
        session.append([token])
        found.append(bench.runner.run(Step([bench.span(session, len(session.tokens), 3)])))
    return found, bench


def test_sessions_that_take_turns_use_the_same_jobs(tiny_folder: Path) -> None:
    expected, _ = in_turns(tiny_folder, at_once=False)
    found, bench = in_turns(tiny_folder, at_once=True)
    assert torch.equal(torch.cat(found), torch.cat(expected))
    attention = bench.runner._attention
    assert isinstance(attention, FusedAttention)
    assert len(attention._lists) == 1


def test_nothing_of_a_session_is_held_when_its_step_is_done(tiny_folder: Path, listed: list[int]) -> None:
    bench = Bench(tiny_folder, fused=True, **BLOCKS)
    session = bench.session()
    bench.logits(session, random_tokens(61), [60, 1], 3)
    assert listed[-1] == 3
    there = weakref.ref(session)
    del session
    gc.collect()
    assert there() is None


def test_of_two_passes_at_once_each_has_jobs_of_its_own(tiny_folder: Path) -> None:
    bench = Bench(tiny_folder, fused=True, **BLOCKS, **SETTINGS["the rest"])
    drawn, texts = dict[str, Tensor](), [random_tokens(400 + DRAWN, seed=seed) for seed in range(2)]

    def draw(name: str, text: list[int]) -> None:
        with torch.inference_mode():
            drawn[name] = bench.logits(bench.session(name), text, [400, *[1] * DRAWN], 3)

    for each, text in enumerate(texts):
        draw(f"alone {each}", text)
    threads = [threading.Thread(target=draw, args=(f"beside {each}", text)) for each, text in enumerate(texts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in range(2):
        assert torch.equal(drawn[f"beside {each}"], drawn[f"alone {each}"])


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_the_layers(family: str, tmp_path: Path, listed: list[int]) -> None:
    """Those of one model may turn and read in several ways."""
    folder = save_model(family, tmp_path / family, uneven=True, **FAMILIES[family])
    same(folder, listed, **BLOCKS, positions="absolute", estimate_rest=True)


def test_as_many_at_once_as_a_tier_bears(tiny_folder: Path, listed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceTier, "window", 100)
    same(tiny_folder, listed, **BLOCKS, positions="absolute", estimate_rest=True)


def one_step(folder: Path, **changes: Any) -> None:
    """A decoded token of a session."""
    bench = Bench(folder, fused=True, **BLOCKS, positions="absolute", estimate_rest=True)
    session = bench.session()
    bench.logits(session, random_tokens(200), [200], 3)
    session.append([7])
    plain = bench.span(session, 201, 3)
    span = Span(session, plain.start, plain.end, plain.token_ids, 3, **changes)
    bench.runner.run(Step([span]))


@pytest.mark.parametrize(
    ("changes", "all_layers"),
    [
        ({}, True),
        ({"audit_rate": 1.0, "audit": Audit()}, False),
        ({"tally": Tally()}, False),
        ({"top_p": 0.9}, False),
    ],
    ids=["plain", "audited", "tallied", "until a share is covered"],
)
def test_a_step_that_somebody_looks_into_goes_layer_by_layer(
    changes: dict[str, Any], all_layers: bool, tiny_folder: Path, listed: list[int]
) -> None:
    one_step(tiny_folder, **changes)
    assert listed[-1] == (3 if all_layers else 0)


def test_whoever_looks_at_a_layer_sees_what_it_gives(tiny_folder: Path, listed: list[int]) -> None:
    bench = Bench(tiny_folder, fused=True, **BLOCKS)
    text, seen = random_tokens(60), list[Tensor]()
    expected = bench.logits(bench.session(), text, [30, *[1] * 30], 3)
    assert any(listed)
    listed.clear()
    bench.model.model.model.layers[1].register_forward_hook(lambda _module, _given, output: seen.append(output))
    found = bench.logits(bench.session("hooked"), text, [30, *[1] * 30], 3)
    assert not listed
    assert len(seen) == 31
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


class Keeping(nn.Module):
    """A layer whose output somebody else reads, too."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, **told: Any) -> Tensor:
        self.given: Tensor = self.layer(hidden_states, **told)
        return self.given


@pytest.mark.parametrize("reads", [False, True])
def test_a_model_that_reads_a_layer_twice_goes_its_own_way(reads: bool, tiny_folder: Path) -> None:
    bench = Bench(tiny_folder, fused=True, **BLOCKS)
    model = unquickened(bench)
    keeping = model.model.layers[0] = Keeping(model.model.layers[0])
    if reads:
        model.model.norm.register_forward_pre_hook(lambda _module, given: (given[0] + keeping.given,))
    layers.quicken_layers(model, bench.model.kv_heads, bench.model.head_dim)
    assert isinstance(vars(model).get("forward"), QuickModel) == (not reads)


def unquickened(bench: Bench) -> Any:
    model = bench.model.model
    layers.quicken_layers(model, bench.model.kv_heads, bench.model.head_dim)()
    return model


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda logits: logits, True),
        (lambda logits: 1.05 * logits, False),
        (lambda logits: 20.0 * torch.tanh(logits / 20.0), False),
    ],
    ids=["nothing", "a factor", "a soft cap"],
)
def test_a_model_that_does_more_with_logits_goes_its_own_way(
    change: Callable[[Tensor], Tensor], same: bool, tiny_folder: Path
) -> None:
    """A cap does nothing to logits as small as a random model's."""
    bench = Bench(tiny_folder, fused=True, **BLOCKS)
    model = unquickened(bench)
    original = model.forward

    def forward(**told: Any) -> Any:
        output = original(**told)
        output.logits = change(output.logits)
        return output

    model.forward = forward
    layers.quicken_layers(model, bench.model.kv_heads, bench.model.head_dim)
    assert isinstance(model.forward, QuickModel) == same
