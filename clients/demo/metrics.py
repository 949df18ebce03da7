"""Prometheus' text format -> numbers: the little of it that the demo shows."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Sample:
    """One line of a scrape."""

    name: str
    labels: dict[str, str]
    value: float


class Metrics:
    """One scrape of `/metrics`."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for line in text.splitlines() if (sample := _sample(line))]

    def value(self, name: str) -> float | None:
        """The sum over all labels, or None where the server does not tell it."""
        values = [sample.value for sample in self._samples if sample.name == name]
        return sum(values) if values else None

    def by_label(self, name: str, label: str) -> dict[str, float]:
        return {s.labels[label]: s.value for s in self._samples if s.name == name and label in s.labels}

    def mean(self, name: str) -> float | None:
        """The mean of a histogram or summary, or None before its first observation."""
        total, count = self.value(f"{name}_sum"), self.value(f"{name}_count")
        return total / count if total is not None and count else None


def _sample(line: str) -> Sample | None:
    found = None if line.startswith("#") else _LINE.fullmatch(line.strip())
    if not found:
        return None
    return Sample(found["name"], dict(_LABEL.findall(found["labels"] or "")), float(found["value"]))
