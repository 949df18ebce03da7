"""Results as JSON, with the machine that gave them."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import torch

from bench.report import write_json


def test_a_result_is_written_with_date_and_machine(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"accuracy": 0.5, "rows": [{"context": 4096}]})
    written = json.loads(path.read_text())
    assert written["accuracy"] == 0.5
    assert written["rows"] == [{"context": 4096}]
    assert written["machine"]["torch"] == torch.__version__
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(written["machine"]["date"])
    assert abs(age.total_seconds()) < 60


def test_without_a_path_nothing_is_written() -> None:
    write_json(None, {"accuracy": 0.5})
