"""Shares that an answer reports, against the attention mass that each block got, computed key by key."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import RetrievalParams, Step
from engine.tally import Tally, runs
from tests.engine.running import running
from tests.models import Bench, random_tokens, save_model

PROMPT, ANSWER = 150, 12
SMALL: dict[str, Any] = {
    "block_size": 8, "recent_blocks": 1, "sink_blocks": 1, "landmark_dtype": "float32", "landmarks": "box-mean",
    "estimate_rest": True,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # family, changes of the model, of the cache
    "grouped queries, absolute": ("llama", {}, {}),
    "bounded": ("llama", {}, {"positions": "bounded"}),
    "bounded, fused": ("llama", {}, {"positions": "bounded", "fused": True}),
    "two sinks, three recent": ("llama", {}, {"sink_blocks": 2, "recent_blocks": 3}),
    "no group": ("phi", {}, {}),
    "windows and a softcap": ("gemma2", {"attn_logit_softcapping": 1.0}, {}),
    "an estimated rest": ("llama", {}, {"landmarks": "mean", "estimate_rest": True}),
    "an estimated rest, fused": ("llama", {}, {"landmarks": "mean", "estimate_rest": True, "positions": "bounded",
                                               "fused": True}),
    "top-p": ("llama", {}, {"landmarks": "moments", "retrieval_top_p": 0.6, "estimate_rest": False}),
    "a dense layer": ("llama", {}, {"dense_layers": 1}),
    "trained": ("landmarks", {}, {}),
    "trained, fused": ("landmarks", {}, {"fused": True}),
}  # fmt: skip


class Counted:
    """The attention of a bench's tallied positions by block, from unrotated q and k and from what was fetched."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench = bench
        self.blocks: defaultdict[int, float] = defaultdict(float)
        self.sinks = self.local = self.estimated = 0.0
        self.keys: dict[int, Tensor] = {}
        attention: Any = bench.runner._attention
        self._attention, self._choice = attention, None
        bench.runner._attention = self._attend
        select = attention._timed_select

        def selecting(*arguments: Any) -> Any:
            self._choice = select(*arguments)
            return self._choice

        monkeypatch.setattr(attention, "_timed_select", selecting)

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step, scaling: float, softcap: Any) -> Tensor:
        self.keys[layer] = torch.cat((self.keys[layer], k)) if layer in self.keys else k
        self._choice = None
        output: Tensor = self._attention(layer, q, k, v, step, scaling, softcap)
        [span] = step.spans
        if span.tally is not None:
            for row in range(len(q)):
                for head in range(q.shape[1]):
                    self._count(layer, span.first + row, head, row, q[row, head] * scaling, softcap)
        return output

    def _count(self, layer: int, position: int, head: int, row: int, query: Tensor, cap: float | None) -> None:
        """Add the softmax of one query head, whose sum is 1."""
        settings, size = self.bench.settings, self.bench.layout.block_size
        geometry, own = self.bench.model.layers[layer], position // size
        kv_head = head * self.bench.layout.kv_heads // 4
        at = torch.arange(position + 1)
        recent = settings.recent_blocks if geometry.window is None else own
        far = at // size < own - recent
        stands = at
        if settings.positions == "bounded":
            stands = torch.where(far, (own - recent - 1) * size + at % size, at)
        keys = geometry.rotation(self.keys[layer][: position + 1, kv_head], stands - stands.min())
        plain = keys @ geometry.rotation(query, torch.tensor(position) - stands.min())
        scores = capped(plain, cap)
        chosen = set(range(own + 1))
        if self._choice is not None:
            blocks, valid = self._choice.blocks[kv_head, row], self._choice.valid[kv_head, row]
            chosen = set(blocks[valid].tolist()) | set(range(settings.sink_blocks)) | set(range(own - recent, own + 1))
        weights: dict[int, float] = {}
        for block in range(own + 1):
            inside = scores[block * size : (block + 1) * size]
            if settings.gated:
                inside = inside[-1:] if block < own else inside[: size - 1]
            if geometry.window is not None:
                inside = inside[(position - at[block * size : (block + 1) * size]) < geometry.window]
            weights[block] = float(inside.exp().sum())
        whole = sum(weight for block, weight in weights.items() if block in chosen)
        rest = 0.0
        if settings.estimate_rest:  # as if each key of a block were their mean
            left = (plain[block * size : (block + 1) * size] for block in set(weights) - chosen)
            rest = sum(float((capped(inside.mean(), cap) + math.log(size)).exp()) for inside in left)
        for block in chosen:
            share = weights[block] / (whole + rest)
            if block >= own - recent:
                self.local += share
            elif block < settings.sink_blocks:
                self.sinks += share
            else:
                self.blocks[block] += share
        self.estimated += rest / (whole + rest)


def capped(scores: Tensor, cap: float | None) -> Tensor:
    return cap * (scores / cap).tanh() if cap else scores


@pytest.mark.parametrize("name", CASES)
def test_shares_are_attention_mass(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, changes, cache = CASES[name]
    trained = family == "landmarks"
    folder = save_model("llama" if trained else family, tmp_path / family, landmarks=trained, **changes)
    bench = Bench(folder, **(cache if trained else SMALL | cache))
    counted, tally, session = Counted(bench, monkeypatch), Tally(), bench.session()
    session.append(random_tokens(PROMPT + ANSWER))
    for end in (100, *range(PROMPT - 1, PROMPT + ANSWER + 1)):
        span = bench.span(session, end, fetch=2)
        bench.runner.run(Step([span if end < PROMPT else replace(span, tally=tally)]))
    positions = bench.layout.positions(PROMPT + ANSWER) - bench.layout.positions(PROMPT - 1)
    whole = len(bench.model.layers) * 4 * positions
    found = (tally.local, tally.sinks, tally.estimated, sum(tally.blocks.values()))
    assert sum(found) == pytest.approx(whole, rel=1e-4), "each query head of each position and layer counts once"
    fetched = sum(counted.blocks.values())
    assert found == pytest.approx((counted.local, counted.sinks, counted.estimated, fetched), abs=1e-3)
    blocks = set(tally.blocks) | set(counted.blocks)
    for block in blocks:
        assert tally.blocks[block] == pytest.approx(counted.blocks[block], abs=1e-3), block
    report = tally.report(bench.layout, 100)
    assert report.fetched + report.sinks + report.local + report.estimated == pytest.approx(1.0)
    assert (report.estimated > 0.01) == bench.settings.estimate_rest
    size = bench.layout.text_per_block
    for passage in report.passages:
        inside = range(passage.start // size, passage.end // size)
        assert passage.share == pytest.approx(sum(counted.blocks[block] for block in inside) / whole, abs=1e-5)
    assert sum(passage.share for passage in report.passages) == pytest.approx(report.fetched, abs=1e-6)


def test_passages_are_the_most_read_blocks_with_neighbours_joined(bench: Bench) -> None:
    tally, size = Tally(), bench.layout.text_per_block
    tally.add([9, 3, 7, 4, 20, 21, 30, 3], [5.0, 2.0, 0.5, 3.0, 1.0, 1.5, 0.25, 2.0])
    tally.local = 4.75
    report = tally.report(bench.layout, 3)  # of the six that were read most
    told = [(passage.start // size, passage.end // size, passage.share) for passage in report.passages]
    assert told == [(3, 5, 7 / 20), (9, 10, 5 / 20), (20, 22, 2.5 / 20)]
    one = tally.report(bench.layout, 1)
    assert [(passage.start // size, passage.end // size) for passage in one.passages] == [(9, 10)]
    assert (report.fetched, report.local) == (15.25 / 20, 4.75 / 20)


def test_neighbours_are_runs() -> None:
    assert runs([1, 2, 4, 7, 8, 9]) == [[1, 2], [4], [7, 8, 9]]
    assert runs([]) == []


@pytest.mark.parametrize("fused", [False, True])
def test_a_tally_changes_no_logits(fused: bool, tiny_folder: Path) -> None:
    found = []
    for tally in (None, Tally()):
        bench = Bench(tiny_folder, fused=fused, positions="bounded", **SMALL)
        session = bench.session()
        session.append(random_tokens(PROMPT))
        found.append(bench.runner.run(Step([replace(bench.span(session, PROMPT, 2), tally=tally)])))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_an_engine_with_an_estimated_rest_tells_its_share(tiny_folder: Path) -> None:
    wanted = RetrievalParams(provenance=True, passages=100)
    with running(tiny_folder, blocks_per_head=2, **SMALL) as run:
        report = run.ask(random_tokens(300), retrieval=wanted).end.retrieval
    assert report is not None
    assert report.estimated > 0.2
    assert report.fetched + report.sinks + report.local + report.estimated == pytest.approx(1.0)
