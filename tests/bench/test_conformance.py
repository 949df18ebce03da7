"""The paper's inference on the authors' own logits; and the bench tells when it is computed wrongly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench.conformance import Verdict, compare, cuts, main

DATA = Path(__file__).parents[1] / "data"
LARGE = Path(__file__).parents[3] / "shared" / "conformance" / "token-paper"


@pytest.mark.parametrize("case", ["chunk-small", "token-small"])
def test_the_small_cases_conform(case: str) -> None:
    verdict = compare(DATA / case)
    assert verdict.passed
    assert verdict.positions == 832
    assert verdict.maximum < 1e-3, "not even a near-tie flips in the small cases"


@pytest.mark.skipif(not LARGE.exists(), reason=f"the large case is not part of the repository: no {LARGE.name} folder")
def test_the_large_case_conforms() -> None:
    assert compare(LARGE).passed


@pytest.mark.parametrize(("case", "change"), [
    ("token-small", {"blocks_per_head": 1}),
    ("token-small", {"blocks_per_head": 3}),
    ("token-small", {"selection": "chunk"}),
    ("token-small", {"prefill_chunk": 64}),
    ("chunk-small", {"selection": "token"}),
    ("chunk-small", {"prompt_length": 700}),
])  # fmt: skip
def test_another_meaning_does_not_conform(case: str, change: dict[str, object], tmp_path: Path) -> None:
    """Each of these numbers shows in the logits, so that conforming means something."""
    folder = Path(shutil.copytree(DATA / case, tmp_path / case))
    settings = json.loads((folder / "case.json").read_text())
    (folder / "case.json").write_text(json.dumps(settings | change))
    assert not compare(folder).passed


def test_the_command_prints_a_table_and_exits_by_the_worst_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Path(shutil.copytree(DATA / "token-small", tmp_path / "wrong"))
    settings = json.loads((wrong / "case.json").read_text())
    (wrong / "case.json").write_text(json.dumps(settings | {"blocks_per_head": 1}))
    good, result = DATA / "token-small", tmp_path / "result.json"
    monkeypatch.setattr("sys.argv", ["conformance", str(good), "--json", str(result)])
    assert main() == 0
    monkeypatch.setattr("sys.argv", ["conformance", str(good), str(wrong), "--json", str(result)])
    assert main() == 1
    assert "wrong" in capsys.readouterr().out
    rows = json.loads(result.read_text())["rows"]
    assert [(row["case"], row["passed"]) for row in rows] == [("token-small", True), ("wrong", False)]


@pytest.mark.parametrize(("median", "share", "passed"), [
    (1e-4, 0.99, True), (1.1e-4, 1.0, False), (0.0, 0.989, False), (float("nan"), 1.0, False),
])  # fmt: skip
def test_tolerances(median: float, share: float, passed: bool) -> None:
    assert Verdict("case", 100, 1.0, median, share).passed is passed


def test_the_prompt_is_cut_into_chunks_and_the_rest_into_single_positions() -> None:
    assert cuts(10, 4, 12) == [(0, 4), (4, 8), (8, 10), (10, 11), (11, 12)]
    assert cuts(8, 4, 8) == [(0, 4), (4, 8)]
