"""The reader of Prometheus' text format, held against what prometheus-client writes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from clients.demo.metrics import Metrics


def scrape() -> Metrics:
    registry = CollectorRegistry()
    usage = Gauge("kv_bytes", "bytes, in {braces}", ["tier"], registry=registry)
    usage.labels("device").set(1.5e9)
    usage.labels('odd "tier", \\ and {more}').set(2)
    Counter("tokens", "tokens", registry=registry).inc(12)
    seconds = Histogram("seconds", "seconds", ["kind"], registry=registry)
    seconds.labels("a").observe(1)
    seconds.labels("b").observe(3)
    Histogram("silent", "never observed", registry=registry)
    return Metrics(generate_latest(registry).decode())


def test_values_are_summed_over_labels() -> None:
    assert scrape().value("tokens_total") == 12
    assert scrape().value("kv_bytes") == 1.5e9 + 2
    assert scrape().value("missing") is None


def test_values_by_label() -> None:
    by_tier = scrape().by_label("kv_bytes", "tier")
    assert by_tier["device"] == 1.5e9
    assert len(by_tier) == 2
    assert scrape().by_label("kv_bytes", "missing") == {}


def test_means() -> None:
    assert scrape().mean("seconds") == 2
    assert scrape().mean("silent") is None
    assert scrape().mean("missing") is None


def test_what_is_not_the_format_is_passed_over() -> None:
    assert Metrics("").value("a") is None
    assert Metrics("# HELP a b\n\n<html>\na 1 1700000000\n").value("a") == 1
