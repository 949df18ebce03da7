"""The Grafana dashboard asks only for what the server exports, and every metric that it exports is shown."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine import EngineStats, StepReport, TierStats
from server.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/cairn.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
EXPRESSIONS: list[str] = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]


def exported() -> dict[str, set[str]]:
    """The labels of each series that a server exports, by name."""
    metrics = Metrics()
    tiers = {"device": TierStats(used_bytes=1, capacity_bytes=2, blocks=1)}
    metrics.watch(lambda: EngineStats(running=1, waiting=0, sessions={"idle": 1}, tiers=tiers))
    metrics.observe_step(StepReport(phase="decode", queries=1, hits={"device": 1}, moved={("disk", "device"): 1}))
    metrics.success.labels("stop").inc()
    metrics.count_refusal(429, "queue_full")
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return {sample.name: set(sample.labels) for sample in samples if not sample.name.endswith("_created")}


def asked() -> set[str]:
    """The series of ours that the dashboard asks for."""
    return {name for expression in EXPRESSIONS for name in re.findall(r"\bcairn_\w+", expression)}


def test_every_series_is_exported() -> None:
    assert asked() <= set(exported())


def test_every_metric_is_shown() -> None:
    def base(name: str) -> str:
        return re.sub(r"_(bucket|sum|count)$", "", name)

    ours = {name for name in exported() if not name.startswith("process_")}
    assert {base(name) for name in ours} == {base(name) for name in asked()}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_it_groups_by_labels_that_exist(expression: str) -> None:
    series = exported()
    names = re.findall(r"\bcairn_\w+", expression)
    for group in re.findall(r"by \(([^)]*)\)", expression):
        for label in group.split(", "):
            assert all(label in series[name] for name in names), label


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_brackets_close_and_servers_can_be_chosen(expression: str) -> None:
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)
    assert expression.count('instance=~"$instance"') == len(re.findall(r"\b(?:cairn_\w+|up)\{", expression))


def test_each_row_asks_a_question() -> None:
    rows = [panel["title"] for panel in PANELS if panel["type"] == "row"]
    assert len(rows) == 9
    assert all(title.endswith("?") for title in rows)


def test_panels_have_their_own_id_and_place() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for one, other in combinations([panel["gridPos"] for panel in PANELS], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)


def test_it_reads_the_provisioned_data_source() -> None:
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    expected = {"type": "prometheus", "uid": provisioned["datasources"][0]["uid"]}
    sources = [variable["datasource"] for variable in DASHBOARD["templating"]["list"]]
    for panel in PANELS:
        if panel["type"] != "row":
            sources += [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
    assert all(source == expected for source in sources)
