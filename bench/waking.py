"""`python -m bench.waking --shape qwen3-0.6b`: what others notice of a long session that comes back from the disk.

A session of `--context` tokens is filled with noise and left to the disk. A short one decodes; then the long one is
asked for a token. Told are the seconds until it has come, what share of its tokens/s the short one keeps meanwhile, and
its longest time between two tokens.
"""

from __future__ import annotations

import argparse
import itertools
import queue
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.report import write_json
from bench.shapes import add_model, made, served
from cache import Archive, Session
from engine import Engine, EngineConfig, Failed, Finished, Generation, SamplingParams, Token
from engine.attention import ReferenceAttention
from engine.step import Span, with_landmarks

FILL = 4096
"""Tokens that are filled at once."""
LONG = 600.0
"""Seconds; longer than the disk takes."""
ALONE = 40
"""Tokens of the short session before the long one is asked."""


def fill(engine: Engine, session: Session, count: int) -> None:
    """Have random keys and values of so many tokens, by the ordinary way; the engine does not run yet."""
    session.append([7] * count)
    landmark, layout = engine.description.landmark_token_id, session.layout
    attention = engine._runner._attention
    assert isinstance(attention, ReferenceAttention)
    for start in range(0, count, FILL):
        end = min(start + FILL, count)
        assert archive(engine).flush(LONG)
        session.reserve(end)
        ids = with_landmarks(session.tokens[start:end].tolist(), start, landmark, layout)
        span = Span(session, start, end, ids, engine.description.retrieval.blocks_per_head)
        shape = (len(ids), layout.kv_heads, layout.head_dim)
        for layer in range(layout.layers):
            attention.store(layer, span, torch.randn(shape), torch.randn(shape))
        session.advance(end)
    engine._registry.save(session)
    engine._registry.rest(session)
    park(engine)
    assert session.parked


def park(engine: Engine) -> None:
    """Leave all indexes to the disk."""
    with engine._changed:
        engine._changed.wait_for(lambda: not engine._running)
        assert archive(engine).flush(LONG)
        while engine._registry.park():
            pass


def archive(engine: Engine) -> Archive:
    found = engine._registry.store.archive
    assert found is not None
    return found


def ask(engine: Engine, name: str, session: str | None, count: int) -> queue.Queue[tuple[float, Any]]:
    """Begin to ask; events come with their time."""
    events: queue.Queue[tuple[float, Any]] = queue.Queue()
    sampling = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
    generation = Generation(name, (7, 8, 9), sampling, session_id=session)
    engine.submit(generation, lambda event: events.put((time.perf_counter(), event)))
    return events


def next_token(events: queue.Queue[tuple[float, Any]]) -> float:
    """When the next token came."""
    while True:
        at, event = events.get()
        if isinstance(event, Failed):
            raise event.error
        assert not isinstance(event, Finished), "it ended too soon"
        if isinstance(event, Token):
            return at


def measure(engine: Engine, long: str) -> dict[str, float]:
    """See the module."""
    short = ask(engine, "short", None, 100_000)
    times = [next_token(short) for _ in range(ALONE)]
    begun = time.perf_counter()
    came = next_token(ask(engine, "long", long, 1))
    engine.cancel("short")
    while not short.empty():
        at, event = short.get()
        if isinstance(event, Token):
            times.append(at)
    alone = [b - a for a, b in itertools.pairwise(times) if b < begun][ALONE // 4 :]
    during = [b - a for a, b in itertools.pairwise(times) if a < came and b > begun]
    mean = sum(alone) / len(alone)
    return {
        "alone_ms": 1000 * mean,
        "wake_seconds": came - begun,
        "share": sum(begun < at < came for at in times) / (came - begun) * mean,
        "longest_ms": 1000 * max(during),
        "longest_alone_ms": 1000 * max(alone),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--context", type=int, default=32_768)
    parser.add_argument("--folder", type=Path, help="where to put the session; a temporary folder if it is not given")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = served(made(options.shape), options.weights)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        config = EngineConfig(kv_bytes=4 << 30, disk_kv_path=folder, disk_kv_bytes=24 << 30, audit_rate=0.0)
        engine = Engine(model, config)
        session = engine._registry.create("")
        with torch.inference_mode():
            fill(engine, session, options.context)
        engine.start()
        rows = []
        for _ in range(options.turns):
            rows.append(measure(engine, session.id))
            print({name: round(value, 3) for name, value in rows[-1].items()}, flush=True)
            park(engine)
        engine.stop()
    write_json(options.json, {"shape": options.shape, "context": options.context, "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
