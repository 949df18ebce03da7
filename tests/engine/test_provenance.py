"""Shares that an answer reports, against the attention mass that each block got, computed key by key."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import RetrievalParams, Step
from engine.tally import Tally, runs
from tests.engine.recorded import Case, Recorded, bench_of, capped
from tests.engine.running import running
from tests.models import Bench, random_tokens

PROMPT, ANSWER = 150, 12
SMALL: dict[str, Any] = {
    "block_size": 8, "recent_blocks": 1, "sink_blocks": 1, "landmark_dtype": "float32", "landmarks": "box-mean",
    "estimate_rest": True,
}  # fmt: skip
CASES: dict[str, Case] = {
    "grouped queries, absolute": ("llama", {}, {}),
    "bounded": ("llama", {}, {"positions": "bounded"}),
    "two sinks, three recent": ("llama", {}, {"sink_blocks": 2, "recent_blocks": 3}),
    "no group": ("phi", {}, {}),
    "windows and a softcap": ("gemma2", {"attn_logit_softcapping": 1.0}, {}),
    "an estimated rest": ("llama", {}, {"landmarks": "mean", "estimate_rest": True}),
    "top-p": ("llama", {}, {"landmarks": "moments", "retrieval_top_p": 0.6, "estimate_rest": False}),
    "a dense layer": ("llama", {}, {"dense_layers": 1}),
    "trained": ("landmarks", {}, {}),
    "trained, fused": ("landmarks", {}, {"fused": True}),
}  # fmt: skip


class Counted:
    """The attention by block of all query heads from a position on."""

    def __init__(self, recorded: Recorded, first: int) -> None:
        self.blocks: defaultdict[int, float] = defaultdict(float)
        self.sinks = self.local = self.estimated = 0.0
        for layer, queries in recorded.q.items():
            for position in range(first, len(queries)):
                for head in range(queries.shape[1]):
                    self._count(recorded, layer, position, head)

    def _count(self, recorded: Recorded, layer: int, position: int, head: int) -> None:
        """Add the softmax of one query head, whose sum is 1."""
        settings, size = recorded.bench.settings, recorded.bench.layout.block_size
        masses, read = recorded.masses(layer, position, head), recorded.read(layer, position, head)
        whole = sum(masses[block] for block in read)
        rest = 0.0
        if settings.estimate_rest:  # as if each key of a block were their mean
            plain, cap = recorded.scores(layer, position, head), recorded.caps[layer]
            left = (plain[block * size : (block + 1) * size] for block in set(range(len(masses))) - read)
            rest = sum(float((capped(inside.mean(), cap) + math.log(size)).exp()) for inside in left)
        for block in read:
            share = masses[block] / (whole + rest)
            if block in recorded.near(layer, position):
                self.local += share
            elif block < settings.sink_blocks:
                self.sinks += share
            else:
                self.blocks[block] += share
        self.estimated += rest / (whole + rest)


@pytest.mark.parametrize("name", CASES)
def test_shares_are_attention_mass(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(CASES[name], tmp_path, SMALL)
    recorded, tally, session = Recorded(bench, monkeypatch), Tally(), bench.session()
    session.append(random_tokens(PROMPT + ANSWER))
    for end in (100, *range(PROMPT - 1, PROMPT + ANSWER + 1)):
        span = bench.span(session, end, fetch=2)
        bench.runner.run(Step([span if end < PROMPT else replace(span, tally=tally)]))
    first = bench.layout.positions(PROMPT - 1)
    counted, positions = Counted(recorded, first), bench.layout.positions(PROMPT + ANSWER) - first
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
    tally.add([9, 3, 7, 4, 20, 21, 30, 3], [5.0, 2.0, 0.5, 3.0, 1.0, 1.5, 0.25, 2.0], 8)
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
        bench = Bench(tiny_folder, fused=fused, positions="bounded", **SMALL | {"landmarks": "moments"})
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
