"""The audit against attention computed key by key; where it looks; and the blocks that it makes a session read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cache import Session
from engine import AuditReport, InvalidParameter, RetrievalParams, Step
from engine.attention.exact import ExactAudit
from engine.audit import MEMORY, MOST_BLOCKS, WINDOW, Audit, Regulator, samples
from tests.engine.recorded import Case, Recorded, bench_of
from tests.engine.running import Running, running
from tests.models import Bench, random_tokens, save_model

LENGTH = 150
SMALL: dict[str, Any] = {"block_size": 8, "recent_blocks": 1, "sink_blocks": 1}


@dataclass(frozen=True)
class Sample:
    """One audited query, and the share of exact attention that it is said to have read."""

    layer: int
    position: int
    head: int
    mass: float


def sampled(monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """What the audit finds from now on."""
    found: list[Sample] = []
    covered = ExactAudit._covered

    def covering(audit: ExactAudit, layer: int, rows: Any, row: int, head: int, *rest: Any) -> float:
        mass = covered(audit, layer, rows, row, head, *rest)
        found.append(Sample(layer, int(rows.positions[row]), head, mass))
        return mass

    monkeypatch.setattr(ExactAudit, "_covered", covering)
    return found


def read(
    bench: Bench, cuts: list[int], *, rate: float, fetch: int | None = 2, tokens: list[int] | None = None
) -> tuple[Tensor, Audit]:
    """Logits and the audit of a text that is read in pieces."""
    audit, session, logits = Audit(), bench.session(), []
    session.append(tokens or random_tokens(LENGTH))
    for cut in cuts:
        span = replace(bench.span(session, session.computed + cut, fetch), audit_rate=rate, audit=audit)
        step = Step([span])
        found = len(audit.masses)
        logits.append(bench.runner.run(step))
        assert step.report.audited == audit.masses[found:]
        assert (step.report.audit_seconds > 0) == (rate > 0)
    return torch.cat(logits), audit


# -- the estimate --------------------------------------------------------------------------------------------

CASES: dict[str, Case] = {
    "grouped queries, absolute": ("llama", {}, {"positions": "absolute"}),
    "bounded": ("llama", {}, {"positions": "bounded"}),
    "bounded, fused": ("llama", {}, {"positions": "bounded", "fused": True}),
    "bounded, no sinks": ("llama", {}, {"positions": "bounded", "sink_blocks": 0, "recent_blocks": 3}),
    "no group": ("phi", {}, {}),
    "softcap and windows": ("gemma2", {"attn_logit_softcapping": 1.0}, {}),
    "layers without positions": ("smollm3", {}, {}),
    "windows, and no positions without one": ("cohere2", {}, {"positions": "bounded"}),
    "outliers": ("llama", {}, {"outlier_blocks": 2}),
    "top-p": ("llama", {}, {"landmarks": "moments", "retrieval_top_p": 0.6}),
    "an estimated rest counts as not read": ("llama", {}, {"landmarks": "mean", "estimate_rest": True}),
    "replaced masses": ("llama", {}, {"landmarks": "combiner"}),
    "a dense layer": ("llama", {}, {"dense_layers": 1}),
    "trained": ("landmarks", {}, {}),
    "trained, fused": ("landmarks", {}, {"fused": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_mass_is_that_of_attention_key_by_key(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, _, cache = CASES[name]
    bench = bench_of(CASES[name], tmp_path, SMALL)
    recorded, found = Recorded(bench, monkeypatch), sampled(monkeypatch)
    _, audit = read(bench, [40, 1, 1, LENGTH - 42], rate=1.0)
    assert [sample.mass for sample in found] == audit.masses
    positions = bench.layout.positions(LENGTH)
    assert sorted(sample.position for sample in found) == list(range(positions))
    chooses = [
        index
        for index, layer in enumerate(bench.model.layers)
        if layer.window is None and index >= (1 if family == "landmarks" else cache.get("dense_layers", 0))
    ]
    assert {sample.layer for sample in found} == set(chooses)
    assert {sample.head for sample in found} == set(range(4))
    for sample in found:
        place = sample.layer, sample.position, sample.head
        if place[:2] in recorded.fetched:
            masses = recorded.masses(*place)
            expected = sum(masses[block] for block in recorded.read(*place)) / sum(masses)
            assert sample.mass == pytest.approx(expected, abs=1e-4), sample
        else:
            assert sample.mass == 1.0, "nothing was to be chosen"
    assert min(audit.masses) < 0.8, "something must be left out for the test to mean anything"


@pytest.mark.parametrize("fetch", [None, 100])
@pytest.mark.parametrize("folder", ["tiny_folder", "landmark_folder"])
def test_who_reads_everything_covers_everything(folder: str, fetch: int | None, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(folder)
    bench = Bench(model, **(SMALL if folder == "tiny_folder" else {}))
    _, audit = read(bench, [100, 50], rate=1.0, fetch=fetch)
    assert set(audit.masses) == {1.0}


def test_long_texts_are_scored_in_pieces(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masses = []
    for piece in (4096, 24, 1):
        monkeypatch.setattr("engine.attention.exact.PIECE", piece)
        for positions in ("absolute", "bounded"):
            masses.append(read(Bench(tiny_folder, **SMALL, positions=positions), [LENGTH], rate=1.0)[1].masses)
    assert masses[2] == masses[4] == pytest.approx(masses[0], abs=1e-5)
    assert masses[3] == masses[5] == pytest.approx(masses[1], abs=1e-5)


def test_a_model_whose_layers_all_have_windows_has_nothing_to_audit(tmp_path: Path) -> None:
    with running(save_model("mistral", tmp_path / "mistral", sliding_window=24), **SMALL) as run:
        report = run.ask(random_tokens(80), retrieval=RetrievalParams(audit=True, min_mass=0.9)).end.audit
    assert report == AuditReport(None, None, 0, 32)


# -- the samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_samples_and_masses_do_not_depend_on_cuts(
    fused: bool, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for cuts in ([LENGTH], [30, *[1] * 20, LENGTH - 50]):
        with monkeypatch.context() as patch:
            drawn = sampled(patch)
            read(Bench(tiny_folder, fused=fused, positions="bounded", **SMALL), cuts, rate=0.3)
            found.append({(s.position, s.layer, s.head): s.mass for s in drawn})
    assert 20 < len(found[0]) < 70
    assert found[0].keys() == found[1].keys()
    assert all(found[0][place] == pytest.approx(found[1][place], abs=1e-4) for place in found[0])


def test_samples_do_not_depend_on_what_else_is_in_the_step(tiny_folder: Path) -> None:
    bench = Bench(tiny_folder, **SMALL)
    spans, audits = [], [Audit(), Audit()]
    for seed, audit in enumerate(audits):
        session = bench.session(str(seed))
        session.append(random_tokens(LENGTH, seed))
        spans.append(replace(bench.span(session, LENGTH, 2), audit_rate=0.3, audit=audit))
    step = Step(spans)
    bench.runner.run(step)
    for seed, audit in enumerate(audits):
        _, alone = read(bench, [LENGTH], rate=0.3, tokens=random_tokens(LENGTH, seed))
        assert sorted(audit.masses) == pytest.approx(sorted(alone.masses), abs=1e-5)
    assert sorted(step.report.audited) == sorted(audits[0].masses + audits[1].masses)


def test_samples_come_at_the_rate_and_everywhere() -> None:
    tokens, count = random_tokens(100_000), 100_000
    drawn = samples(7, tokens, 0.02)
    assert abs(len(drawn) - 0.02 * count) < 4 * (0.02 * count) ** 0.5
    assert all(7 <= position < 7 + count for position in drawn)
    halves = [sum(position < 7 + count // 2 for position in drawn), len(drawn) / 2]
    assert abs(halves[0] - halves[1]) < 4 * (halves[1] / 2) ** 0.5
    heads = Counter(number % 24 for number in drawn.values())  # as many layers and heads as there may be
    assert len(heads) == 24
    assert all(abs(times - len(drawn) / 24) < 4.5 * (len(drawn) / 24) ** 0.5 for times in heads.values())
    assert samples(7, tokens, 0.0) == {}
    assert len(samples(7, tokens, 1.0)) == count
    assert samples(7, tokens, 0.001).items() < drawn.items(), "a higher rate adds samples"


def test_short_texts_are_not_all_audited_at_the_same_places() -> None:
    places = Counter(place for seed in range(200) for place in samples(0, random_tokens(100, seed), 0.02))
    assert len(places) > 75
    assert sum(places.values()) == pytest.approx(400, abs=80)


def test_a_servers_rate_audits_prompts_and_answers(tiny_folder: Path) -> None:
    prompt = random_tokens(300)
    with running(tiny_folder, audit_rate=0.1, step_tokens=64, **SMALL) as run:
        request = run.ask(prompt, max_tokens=50)
    computed = samples(0, prompt + request.tokens()[:-1], 0.1)
    assert len(computed) > 20
    assert sum(len(report.audited) for report in run.gate.reports) == len(computed)
    assert request.end.audit is None
    assert all(0 <= report.audit_seconds < report.seconds for report in run.gate.reports)


def test_no_rate_no_audit(tiny_folder: Path) -> None:
    with running(tiny_folder, audit_rate=0.0, **SMALL) as run:
        run.ask(random_tokens(200))
    assert not any(report.audited or report.audit_seconds for report in run.gate.reports)


# -- answers -------------------------------------------------------------------------------------------------


def audited(run: Running, tokens: list[int], **more: Any) -> AuditReport:
    report = run.ask(tokens, retrieval=RetrievalParams(audit=True), **more).end.audit
    assert report is not None
    return report


@pytest.fixture
def run(tiny_folder: Path) -> Iterator[Running]:
    """Reads little, and audits only who asks."""
    with running(tiny_folder, audit_rate=0.0, blocks_per_head=1, **SMALL) as started:
        yield started


def test_an_answers_audit_is_that_of_its_samples(run: Running) -> None:
    report = audited(run, random_tokens(200), max_tokens=20)
    masses = [mass for step in run.gate.reports for mass in step.audited]
    assert len(masses) == report.samples == 20  # the prompt's last token, and the answer's but for its last
    assert report.mean == pytest.approx(sum(masses) / 20)
    assert report.lowest == min(masses)
    assert report.blocks_per_head == 1
    assert len(set(masses)) > 10


def test_an_audit_is_the_same_in_a_session_and_beside_others(run: Running) -> None:
    alone = audited(run, random_tokens(200))
    session = run.engine.create_session("").id
    run.ask(random_tokens(200)[:150], session=session, max_tokens=0)
    run.gate.close()
    beside = run.submit(random_tokens(100, seed=3), max_tokens=30)
    run.gate.wait()
    run.gate.open()
    later = audited(run, random_tokens(200)[150:], session=session)
    beside.result()
    assert (later.mean, later.lowest) == pytest.approx((alone.mean, alone.lowest), abs=1e-4)


def test_reading_all_is_found_to_cover_all(run: Running) -> None:
    both = RetrievalParams(exact=True, audit=True)
    assert run.ask(random_tokens(200), retrieval=both).end.audit == AuditReport(1.0, 1.0, 8, None)
    held = RetrievalParams(exact=True, min_mass=1.0)
    assert run.ask(random_tokens(200), retrieval=held).end.audit == AuditReport(1.0, 1.0, 8, None)


def test_each_of_several_answers_has_its_own(run: Running) -> None:
    request = run.ask(random_tokens(200), n=2, temperature=1.0, seed=3, retrieval=RetrievalParams(audit=True))
    first, second = (request.end_of(index).audit for index in range(2))
    assert first is not None
    assert second is not None
    assert first.samples == second.samples == 8
    assert first.mean != second.mean


def test_an_answer_of_no_tokens_is_audited_at_the_prompts_last(run: Running) -> None:
    report = audited(run, random_tokens(200), max_tokens=0)
    assert (report.samples, report.mean) == (1, report.lowest)


def test_an_audit_changes_no_answer(run: Running, tiny_folder: Path) -> None:
    silent = run.ask(random_tokens(200), max_tokens=30)
    told = run.ask(random_tokens(200), max_tokens=30, retrieval=RetrievalParams(audit=True))
    assert silent.end.audit is None
    assert silent.tokens() == told.tokens()
    logits = [read(Bench(tiny_folder, **SMALL), [100, 50], rate=rate)[0] for rate in (0.0, 1.0)]
    assert torch.equal(*logits)


# -- min_mass ------------------------------------------------------------------------------------------------

HELD = RetrievalParams(min_mass=0.2)
"""Of the random model's 75 blocks, which get about the same attention, 8 have less than this, and 16 have more."""


def held(run: Running, session: str) -> int | None:
    """What the audit has raised a session's blocks_per_head to."""
    found: Session | None = run.engine._registry.get(session, "")
    assert found is not None
    return found.blocks_per_head


def selected(run: Running, tokens: list[int], session: str, **retrieval: Any) -> float:
    """Blocks that each head fetched for the last token of an answer."""
    run.ask(tokens, session=session, retrieval=RetrievalParams(**retrieval))
    report = run.gate.reports[-1]
    return report.blocks_selected / report.queries


def test_min_mass_raises_a_session_until_the_mass_holds(run: Running) -> None:
    session = run.engine.create_session("").id
    first = run.ask(random_tokens(600), session=session, max_tokens=60, retrieval=HELD).end.audit
    assert first is not None
    assert (first.blocks_per_head, held(run, session)) == (16, 16)
    fetched = [report.blocks_selected / report.queries for report in run.gate.reports if report.phase == "decode"]
    assert list(dict.fromkeys(fetched)) == [1, 2, 4, 8, 16]
    again = run.ask(random_tokens(10), session=session, max_tokens=60, retrieval=HELD).end.audit
    assert again is not None
    assert again.mean is not None
    assert again.mean > 0.2
    assert again.blocks_per_head == 16


def test_what_is_raised_stays_and_forks_inherit_it(run: Running) -> None:
    session = run.engine.create_session("").id
    run.ask(random_tokens(400), session=session, max_tokens=9, retrieval=HELD)
    assert held(run, session) == 2
    assert selected(run, random_tokens(5), session) == 2
    assert selected(run, random_tokens(5), session, blocks_per_head=5) == 5
    assert selected(run, random_tokens(5), session, blocks_per_head=1) == 1
    assert selected(run, random_tokens(5), session) == 2
    fork = run.engine.fork_session(session, "").id
    assert selected(run, random_tokens(5), fork) == 2
    run.ask(random_tokens(5), session=fork, max_tokens=12, retrieval=HELD)
    assert (held(run, session), held(run, fork)) == (2, 4)


def test_who_only_shares_a_prefix_is_not_raised(run: Running) -> None:
    before = run.ask(random_tokens(400))
    session = run.engine.create_session("").id
    run.ask(random_tokens(400), session=session, max_tokens=40, retrieval=HELD)
    assert held(run, session)
    run.engine._registry.evict()
    after = run.ask(random_tokens(400))
    assert after.end.usage.cached_tokens > 300
    assert run.gate.reports[-1].blocks_selected == run.gate.reports[-1].queries
    assert after.tokens() == before.tokens()


def test_short_answers_raise_it_together(run: Running) -> None:
    session = run.engine.create_session("").id
    run.ask(random_tokens(400), session=session, max_tokens=3, retrieval=HELD)
    run.ask(random_tokens(5), session=session, max_tokens=3, retrieval=HELD)
    assert held(run, session) is None
    run.ask(random_tokens(5), session=session, max_tokens=3, retrieval=HELD)
    assert held(run, session) == 2


def test_a_mass_that_holds_raises_nothing(run: Running) -> None:
    session = run.engine.create_session("").id
    run.ask(random_tokens(400), session=session, max_tokens=40, retrieval=RetrievalParams(min_mass=0.01))
    assert held(run, session) is None
    wanted = RetrievalParams(min_mass=0.01, blocks_per_head=7)
    report = run.ask(random_tokens(5), session=session, max_tokens=40, retrieval=wanted).end.audit
    assert report is not None
    assert report.blocks_per_head == 7
    assert held(run, session) is None, "that was this request's"


def test_the_servers_top_p_gives_way(tiny_folder: Path) -> None:
    """It would stop before the mass is there, however many blocks a head may fetch."""
    with running(tiny_folder, audit_rate=0.0, landmarks="moments", retrieval_top_p=0.01, **SMALL) as run:
        session = run.engine.create_session("").id
        assert selected(run, random_tokens(400), session, blocks_per_head=4) < 4
        assert selected(run, random_tokens(5), session, min_mass=0.01, blocks_per_head=4) == 4


class Holding:
    """A session whose audit finds a certain mass with so many blocks, for eight samples at a time."""

    def __init__(self, least: float, begin: int, masses: dict[int, float], session: Session) -> None:
        self.regulator = Regulator(least, begin, session)
        self.masses, self.found = masses, list[float]()

    def settle(self) -> list[int]:
        """Numbers of blocks, one after the other, of twenty windows."""
        numbers = [self.regulator.blocks_per_head]
        for _ in range(20 * WINDOW):
            self.found.append(self.masses.get(self.regulator.blocks_per_head, 0.0))
            numbers.append(self.regulator.observe(self.found))
        return list(dict.fromkeys(numbers))


@pytest.mark.parametrize(("begin", "masses", "numbers"), [
    (1, {8: 0.95}, [1, 2, 4, 8]),
    (3, {6: 1.0}, [3, 6]),
    (3, {3: 0.9}, [3]),
    (0, {2: 0.9}, [0, 1, 2]),
    (1000, {}, [1000, 2000, 4000, MOST_BLOCKS]),
    (MOST_BLOCKS + 1, {}, [MOST_BLOCKS + 1]),
])  # fmt: skip
def test_blocks_are_doubled_until_they_hold(
    begin: int, masses: dict[int, float], numbers: list[int], bench: Bench
) -> None:
    session = bench.session()
    assert Holding(0.9, begin, masses, session).settle() == numbers
    assert session.blocks_per_head == (numbers[-1] if len(numbers) > 1 else None)
    assert len(session.audited) <= MEMORY


def test_samples_with_fewer_blocks_do_not_count_against_more(bench: Bench) -> None:
    session = bench.session()
    Regulator(0.9, 1, session).observe([0.0] * 7)
    more = Regulator(0.9, 4, session)
    assert more.observe([0.95] * 7) == 4
    assert more.observe([0.95] * 8) == 4
    assert session.blocks_per_head is None


def test_a_few_bad_samples_do_not_raise_what_has_long_held(bench: Bench) -> None:
    session, masses = bench.session(), [0.95] * 100
    regulator = Regulator(0.9, 4, session)
    assert regulator.observe(masses) == 4
    assert regulator.observe(masses + [0.6] * 8) == 4
    assert regulator.observe(masses + [0.6] * 40) == 8


@pytest.mark.parametrize(("options", "named"), [
    ({"min_mass": 0.0}, "retrieval.min_mass"),
    ({"min_mass": -0.5}, "retrieval.min_mass"),
    ({"min_mass": 1.01}, "retrieval.min_mass"),
    ({"min_mass": float("nan")}, "retrieval.min_mass"),
    ({"min_mass": 0.9, "top_p": 0.9}, "retrieval.top_p"),
])  # fmt: skip
def test_a_mass_without_sense_is_refused(options: dict[str, float], named: str) -> None:
    with pytest.raises(InvalidParameter, match=named):
        RetrievalParams(**options)  # type: ignore[arg-type]
