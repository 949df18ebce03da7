"""What the window's bench counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.window import Row, markdown, measure, parse


def test_a_small_window_is_counted(tiny_folder: Path) -> None:
    options = parse(["--model", str(tiny_folder), "--count", "6", "--host", "64"])
    row = measure(options, 900, 0.6, 1)
    assert row.fetched == 3 * 2 * 32, "layers, KV heads, far blocks"
    assert row.waited == pytest.approx((1 - row.share) * row.fetched)
    assert row.brought >= 0
    assert markdown([row]).count("\n") == 2


def test_shares_are_of_what_was_fetched() -> None:
    row = Row(900, 8, 1, fetched=100, share=0.9, brought=5, used=0.5, waited=10)
    assert "| 900 | 8 MiB | 1 | 100 | 90.0% | 5.0 | 50.0% | 10.0 |" in markdown([row])
