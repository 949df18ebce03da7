"""The table of `cairn bench`: percentiles of what was measured, and of how much that was."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from cairn_client import CairnError

    from clients.terminal.load import Load

SHARES = (0.5, 0.9, 0.99)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of `values` does not pass: one that was measured, none between."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def measures(load: Load) -> dict[str, list[float]]:
    """Milliseconds of each kind."""
    done = [felt for felt in load.felt if not felt.failure]
    return {
        "first text": [1000 * felt.first for felt in done],
        "between pieces": [1000 * gap for felt in done for gap in felt.gaps],
        "whole answer": [1000 * felt.seconds for felt in done],
    }


def show(console: Console, load: Load) -> None:
    """The table, and the sums below it."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("milliseconds")
    for name in ("p50", "p90", "p99", "max", "measured"):
        table.add_column(name, justify="right")
    for name, values in measures(load).items():
        if values:
            shown = [percentile(values, share) for share in SHARES] + [max(values)]
            table.add_row(name, *(f"{value:,.1f}" for value in shown), f"{len(values):,}")
    console.print(table, soft_wrap=False)
    sums = totals(load)
    cached = f"{sums['cached_tokens']:,} of {sums['prompt_tokens']:,} were in the cache"
    console.print(
        f"{sums['requests']} answered in {sums['seconds']:.2f} s, {sums['requests_per_second']:.2f} requests/s; "
        f"read {sums['prompt_tokens_per_second']:,.0f} tokens/s ({cached}), "
        f"wrote {sums['generated_tokens_per_second']:,.1f} tokens/s"
    )
    for failures in _alike([felt.failure for felt in load.felt if felt.failure]):
        console.print(f"{len(failures)} failed: {failures[0]}", markup=False, style="red")


def _alike(failures: Sequence[CairnError]) -> list[list[CairnError]]:
    """Failures of the same kind together; their messages may differ in numbers."""
    kinds: dict[str, list[CairnError]] = {}
    for failure in failures:
        kinds.setdefault(str(getattr(failure, "code", type(failure))), []).append(failure)
    return list(kinds.values())


def totals(load: Load) -> dict[str, float]:
    """Sums over all that was answered, and rates over the whole time."""
    done = [felt for felt in load.felt if not felt.failure]
    prompt, cached = sum(felt.prompt_tokens for felt in done), sum(felt.cached_tokens for felt in done)
    generated = sum(felt.generated_tokens for felt in done)
    return {
        "requests": len(done),
        "failed": len(load.felt) - len(done),
        "seconds": load.seconds,
        "requests_per_second": len(done) / load.seconds,
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "generated_tokens": generated,
        "prompt_tokens_per_second": (prompt - cached) / load.seconds,
        "generated_tokens_per_second": generated / load.seconds,
    }


def as_json(load: Load) -> str:
    """All of it, for programs."""
    told = {}
    for name, values in measures(load).items():
        found = {f"p{share * 100:g}": percentile(values, share) for share in SHARES} if values else {}
        told[f"{name.replace(' ', '_')}_ms"] = {**found, "measured": len(values)}
    return json.dumps(totals(load) | told)
