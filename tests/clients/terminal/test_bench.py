"""`cairn bench`: its sums are the server's, its percentiles are numpy's."""

from __future__ import annotations

import json

import numpy
import pytest
from cairn_client import Cairn

from clients.demo.metrics import Metrics
from clients.terminal.report import percentile
from tests.clients.terminal.conftest import Run


def generated(cairn: Cairn) -> float:
    return Metrics(cairn.metrics()).value("cairn_generation_tokens_total") or 0


def test_a_small_load(run: Run, cairn: Cairn) -> None:
    before = generated(cairn)
    result = run("bench", "--clients", "2", "--requests", "5", "--prompt-tokens", "60", "--max-tokens", "7", "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["requests"], told["failed"], told["generated_tokens"]) == (5, 0, 35)
    assert generated(cairn) - before == 35
    assert 5 * 50 < told["prompt_tokens"] < 5 * 90
    assert told["first_text_ms"]["measured"] == 5
    assert 0 < told["first_text_ms"]["p50"] <= told["first_text_ms"]["p99"] <= 1000 * told["seconds"]


def test_the_table(run: Run) -> None:
    shown = run("bench", "--clients", "1", "--requests", "1", "--prompt-tokens", "5", "--max-tokens", "3").stdout
    assert "first text" in shown
    assert "between pieces" in shown
    assert "1 answered in" in shown


def test_refusals_are_counted(run: Run) -> None:
    result = run("bench", "--requests", "2", "--max-tokens", "900000", "--prompt-tokens", "5")
    assert result.returncode == 1
    assert "2 failed: " in result.stdout


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("count", [1, 2, 10, 101])
def test_percentiles(share: float, count: int) -> None:
    values = numpy.random.default_rng(count).random(count).tolist()
    assert percentile(values, share) == numpy.percentile(values, 100 * share, method="inverted_cdf")
