"""`python -m bench.audit --contexts 4096,32768,131072`: what the audit costs, as a share of a step.

One process, the shipped model, a cache of random keys and values. At the default rate so few tokens are sampled that a
short run would measure chance. So the share is put together: the cost of a sample from steps at a higher rate, and
that of looking for samples from steps at the default rate that found none. Beside it, whole steps without and with
the audit in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from bench.noise import Cairn
from bench.report import write_json
from bench.shapes import OURS
from engine import EngineConfig, LoadedModel, Step, StepReport, load_model

OFTEN = 64
"""Samples that a step at the higher rate is to have in prefill; in decode each token is one."""


@dataclass(frozen=True)
class Row:
    """One context and phase; milliseconds are medians over the steps."""

    context: int
    phase: str
    step_tokens: int
    step_ms: float
    sample_ms: float
    looking_ms: float
    share: float
    side_by_side: float


class Bench:
    """One session of `context` text tokens, whose next tokens are computed again and again."""

    def __init__(self, model: LoadedModel, context: int, step_tokens: int) -> None:
        self._cairn = Cairn(model, EngineConfig(), context, step_tokens)
        self._context, self._tokens = context, step_tokens
        self.positions = self._cairn.layout.positions(context + step_tokens) - self._cairn.layout.positions(context)

    def step(self, rate: float, number: int) -> StepReport:
        """One step at an audit rate; its tokens differ from step to step, and so do its samples."""
        self._cairn.session.computed = self._context
        span = self._cairn.span(self._context, self._context + self._tokens)
        ids = [100 + (7 * number + place) % 3000 for place in range(len(span.token_ids))]
        step = Step([replace(span, token_ids=ids, audit_rate=rate)])
        begun = time.perf_counter()
        self._cairn.runner.run(step, [len(ids) - 1])
        step.report.seconds = time.perf_counter() - begun
        return step.report


def measure(model: LoadedModel, context: int, tokens: int, steps: int, rate: float) -> Row:
    """Steps without an audit, at the default rate, and with many samples, in turn."""
    bench = Bench(model, context, tokens)
    rates = (0.0, rate, min(1.0, OFTEN / tokens))
    bench.step(rates[2], 0)
    reports: list[list[StepReport]] = [[], [], []]
    for number in range(steps):
        for found, each in zip(reports, rates, strict=True):
            found.append(bench.step(each, number))
    silent, default, often = reports
    looking = [report.audit_seconds for report in default if not report.audited]
    sampled = [report.audit_seconds / len(report.audited) for report in often if report.audited]
    alone, sample = statistics.median(report.seconds for report in silent), statistics.median(sampled)
    looked = statistics.median(looking) if looking else 0.0
    pairs = [mine.seconds / other.seconds for mine, other in zip(default, silent, strict=True)]
    share = (looked + rate * bench.positions * sample) / alone
    phase = "decode" if tokens == 1 else "prefill"
    whole, single, look = (round(1000 * seconds, 4) for seconds in (alone, sample, looked))
    return Row(context, phase, tokens, whole, single, look, round(share, 5), round(statistics.median(pairs), 3))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", default="4096,32768,131072")
    parser.add_argument("--rate", type=float, default=EngineConfig().audit_rate, help="audited share of the tokens")
    parser.add_argument(
        "--steps", type=int, default=10, help="prefill steps at each rate; decode takes ten times as many"
    )
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    model, rows = load_model(str(OURS)), []
    for context in (int(context) for context in options.contexts.split(",")):
        for tokens, steps in ((1, 10 * options.steps), (EngineConfig().step_tokens, options.steps)):
            rows.append(measure(model, context, tokens, steps, options.rate))
            print(rows[-1], flush=True)
    write_json(options.json, {"shape": "cairn-4m", "rate": options.rate, "rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
