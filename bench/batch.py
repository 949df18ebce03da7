"""`python -m bench.batch --context 32768 --clients 1,4,16`: tokens per second of clients that decode together.

Each client has a session of its own, a fork of one that is filled with random keys and values: blocks are shared in
memory, but each client's queries choose and read for themselves.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.noise import Cairn
from bench.report import write_json
from bench.shapes import add_model, made, served
from cache import Session
from engine import EngineConfig, Span, Step
from engine.step import with_landmarks


@dataclass(frozen=True)
class Row:
    """So many clients; `speedup` is against the first row."""

    clients: int
    ms_per_step: float
    tokens_per_second: float
    speedup: float


def step_seconds(cairn: Cairn, sessions: list[Session]) -> float:
    """One token for each session."""
    spans = []
    for number, session in enumerate(sessions):
        session.append([7 + number])
        start = session.computed
        session.reserve(start + 1)
        ids = with_landmarks(session.tokens[start : start + 1].tolist(), start, cairn.landmark, cairn.layout)
        spans.append(Span(session, start, start + 1, ids, cairn.settings.blocks_per_head))
    step = Step(spans)
    last = [sum(len(span.token_ids) for span in spans[: i + 1]) - 1 for i in range(len(spans))]
    begun = time.perf_counter()
    cairn.runner.run(step, last).argmax(-1)
    return time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--context", type=int, default=32_768)
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    model = served(made(options.shape), options.weights)
    counts = [int(count) for count in options.clients.split(",")]
    cairn = Cairn(model, EngineConfig(), options.context, 64 * max(counts))  # room for what each client adds
    cairn.session.rewind(cairn.session.sealed)
    del cairn.session.tokens[cairn.session.computed :]
    rows: list[Row] = []
    print(f"{'clients':>8}{'ms per step':>13}{'tokens/s':>10}{'speedup':>9}")
    for count in counts:
        sessions = [cairn.session.fork(str(number)) for number in range(count)]
        seconds = statistics.median([step_seconds(cairn, sessions) for _ in range(options.steps + 2)][2:])
        for session in sessions:
            session.rewind(0)
        rate = count / seconds
        row = Row(count, 1000 * seconds, rate, rate / rows[0].tokens_per_second if rows else 1.0)
        print(f"{count:>8}{row.ms_per_step:>13.1f}{rate:>10.1f}{row.speedup:>8.1f}x", flush=True)
        rows.append(row)
    told = {"shape": options.shape, "weights": options.weights, "context": options.context}
    write_json(options.json, {**told, "rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
