"""`python -m bench.serving WHAT`: what serving costs and keeps, each against a server process of its own.

- startup: seconds to import the server, and from the start of the process until it is ready
- overhead: share of a step at batch 1 that is neither model nor attention
- http: CPU time of the HTTP and streaming layer per streamed token, many streams at once
- fairness: streams that decode while a long prompt is read: what both keep of their speed
- backpressure: a full queue: how fast requests beyond it are refused, and whether an accepted one fails
- soak: many connections, some of which stream and leave as they like: what is left of it when all have gone

Seconds are this machine's and noisy; ratios are what counts, and stand first.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import queue
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.fairness import fairness
from bench.report import write_json
from bench.served import Connection, Held, ServerProcess, Stream, completion, quantile, text
from engine import Engine, EngineConfig, Event, Finished, Generation, SamplingParams, Token, load_model

Result = dict[str, Any]
IMPORT = """
import time
begun, cpu = time.perf_counter(), time.process_time()
import server.serving
print(time.perf_counter() - begun, time.process_time() - cpu)
"""
WARM = 32
"""Tokens that are drawn before measuring begins."""


def startup(options: argparse.Namespace) -> Result:
    """See the module; medians, after a first start that fills the caches of the file system."""
    importing, ready = [], []
    for _ in range(options.runs + 1):
        told = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        importing.append([float(number) for number in told.stdout.split()])
        with ServerProcess(options.model, threads=options.threads) as server:
            ready.append([server.ready_seconds, server.process_seconds()])
    medians = [statistics.median(each) for run in (importing, ready) for each in zip(*run[1:], strict=True)]
    names = ("import_seconds", "import_cpu_seconds", "ready_seconds", "ready_cpu_seconds")
    return dict(zip(names, medians, strict=True))


def overhead(options: argparse.Namespace) -> Result:
    """See the module; the model's own call holds model and attention."""
    model = load_model(options.model)
    inside: list[float] = []
    model.model.register_forward_pre_hook(lambda *_: inside.append(-time.perf_counter()))
    model.model.register_forward_hook(lambda *_: inside.append(inside.pop() + time.perf_counter()))
    engine = Engine(model, EngineConfig(kv_bytes=1 << 30, threads=options.threads))
    engine.start()
    events: queue.Queue[tuple[float, Event]] = queue.Queue()
    sampling = SamplingParams(max_tokens=WARM + options.tokens, temperature=0.0, ignore_eos=True)
    generation = Generation("1", tuple(text(options.context, 0)), sampling)
    engine.submit(generation, lambda event: events.put((time.perf_counter(), event)))
    came = []
    while not isinstance((told := events.get())[1], Finished):
        if isinstance(told[1], Token):
            came.append(told[0])
    engine.stop()
    gaps = [b - a for a, b in itertools.pairwise(came[WARM - 1 :])]
    outside = [1 - model / gap for model, gap in zip(inside[-len(gaps) :], gaps, strict=True)]
    return {
        "share_outside": statistics.median(outside),
        "step_ms": 1000 * statistics.median(gaps),
        "model_ms": 1000 * statistics.median(inside[-len(gaps) :]),
        "context": options.context,
    }


def http(options: argparse.Namespace) -> Result:
    """See the module; with one thread for a pass, the busiest thread but the event loop's is the engine's."""
    settings = {"threads": 1, "max_running": options.streams, "prefix_cache": "no"}
    with ServerProcess(options.model, **settings) as server:
        asyncio.run(_streams(server.port, options.streams, 8))  # warm
        before, cpu, begun = server.metrics(), server.thread_seconds(), server.process_seconds()
        told = asyncio.run(_streams(server.port, options.streams, options.tokens))
        after, then, ended = server.metrics(), server.thread_seconds(), server.process_seconds()
    tokens = after["cairn_generation_tokens_total"] - before["cairn_generation_tokens_total"]
    spent = {thread: then[thread] - cpu.get(thread, 0.0) for thread in then}
    loop = spent.pop(server.loop_thread)
    engine = max(spent.values())
    assert all(stream.ended and stream.error is None for stream in told)
    return {
        "ms_per_token": 1000 * (ended - begun - engine) / tokens,
        "loop_ms_per_token": 1000 * loop / tokens,
        "engine_ms_per_token": 1000 * engine / tokens,
        "streams": options.streams,
        "tokens": tokens,
        "events": sum(len(stream.came) for stream in told),
    }


async def _streams(port: int, count: int, tokens: int) -> list[Stream]:
    connections = [Connection(port) for _ in range(count)]
    bodies = [completion(text(40, seed), tokens) for seed in range(count)]
    asked = [each.stream("/v1/completions", body) for each, body in zip(connections, bodies, strict=True)]
    told = await asyncio.gather(*asked)
    for each in connections:
        await each.close()
    return told


def backpressure(options: argparse.Namespace) -> Result:
    """See the module: one request at a time beyond a full queue, then all at once."""
    room = options.running + options.waiting
    settings = {"threads": options.threads, "max_running": options.running, "max_waiting": options.waiting}
    with ServerProcess(options.model, prefix_cache="no", **settings) as server:
        accepted, single, burst = asyncio.run(_backpressure(server, options, room))
        server.settle()
    refused = [stream for stream in (*single, *burst) if stream.status == 429]
    taken = [stream for stream in (*accepted, *single, *burst) if stream.status == 200]
    waits = {name: [s.answered - s.sent for s in told] for name, told in (("single", single), ("burst", burst))}
    return {
        "accepted_failed": sum(not stream.ended or stream.error is not None for stream in taken),
        "accepted": len(taken),
        "room": room,
        "refused": len(refused),
        "without_retry_after": sum(stream.retry_after is None for stream in refused),
        "single_p50_ms": 1000 * quantile(waits["single"], 0.5),
        "single_p99_ms": 1000 * quantile(waits["single"], 0.99),
        "single_worst_ms": 1000 * max(waits["single"]),
        "burst_p50_ms": 1000 * quantile(waits["burst"], 0.5),
        "burst_p99_ms": 1000 * quantile(waits["burst"], 0.99),
    }


async def _backpressure(
    server: ServerProcess, options: argparse.Namespace, room: int
) -> tuple[list[Stream], list[Stream], list[Stream]]:
    held = [Connection(server.port) for _ in range(room)]
    filling = []
    for number, each in enumerate(held):  # one by one: the queue must not be full before those that run have left it
        body = completion(text(200, number), options.tokens)
        filling.append(asyncio.ensure_future(each.stream("/v1/completions", body)))
        running = min(number + 1, options.running)
        while (await asyncio.to_thread(server.metrics))["cairn_num_requests_running"] < running:
            await asyncio.sleep(0.01)
    while (await asyncio.to_thread(server.held)).requests < room:
        await asyncio.sleep(0.01)
    body, single = completion(text(200, -1), options.tokens), []
    connection = Connection(server.port)
    for _ in range(options.requests):
        single.append(await connection.stream("/v1/completions", body))
    flood = [Connection(server.port) for _ in range(options.requests)]
    for each in flood:
        await each.open()
    burst = await asyncio.gather(*(each.stream("/v1/completions", body) for each in flood))
    accepted = await asyncio.gather(*filling)
    for each in (*held, *flood, connection):
        await each.close()
    return list(accepted), single, list(burst)


def soak(options: argparse.Namespace) -> Result:
    """See the module; what is held is compared with the moment after a warm-up under the same load."""
    settings = {"threads": options.threads, "prefix_cache": "no", "max_waiting": options.streams}
    with ServerProcess(options.model, **settings) as server:
        asyncio.run(_crowd(server.port, options, options.warm_seconds))
        before = _rested(server)
        ends, failures = asyncio.run(_crowd(server.port, options, options.seconds))
        after = _rested(server)
    changed = {f"more_{name}": asdict(after)[name] - value for name, value in asdict(before).items()}
    return changed | {
        "resident_ratio": after.resident / before.resident,
        "before": asdict(before),
        "streams": ends.total(),
        "ends": dict(ends),
        "failures": dict(failures),
    }


def _rested(server: ServerProcess) -> Held:
    """What the server holds when all have left and it has seen it."""
    server.settle()
    time.sleep(3)
    return server.settle()


async def _crowd(port: int, options: argparse.Namespace, seconds: float) -> tuple[Counter[str], Counter[str]]:
    """So many open connections, of which so many stream at any time; how streams ended, and what went wrong."""
    ends: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    turn, until = asyncio.Semaphore(options.streams), time.perf_counter() + seconds

    async def client(number: int) -> None:
        rng, connection = random.Random(number), Connection(port)
        await connection.open()
        while time.perf_counter() < until:
            async with turn:
                if time.perf_counter() < until:
                    await one(rng, connection)
            await asyncio.sleep(rng.random())
        await connection.close()

    async def one(rng: random.Random, connection: Connection) -> None:
        tokens = rng.randrange(4, 64)
        leave = rng.randrange(tokens) if rng.random() < options.leaving else -1
        body, told = completion(text(rng.randrange(10, 200), rng.randrange(1 << 30)), tokens), Stream()
        try:
            await connection.stream("/v1/completions", body, told, leave)
        except (OSError, EOFError) as error:
            failures[type(error).__name__] += 1
            await connection.close()
        if told.ended and told.error is None:
            ends["done"] += 1
        elif 0 <= leave <= len(told.came):
            ends["left"] += 1
        else:
            failures[told.error or f"status {told.status}, {len(told.came)} events"] += 1

    await asyncio.gather(*(client(number) for number in range(options.connections)))
    return ends, failures


def show(what: str, result: Result) -> None:
    """A table, in the order of the result."""
    print(what)
    for name, value in result.items():
        shown = f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        print(f"  {name:28} {shown}")


BENCHES: dict[str, tuple[Callable[[argparse.Namespace], Result], dict[str, Any]]] = {
    "startup": (startup, {"runs": 3}),
    "overhead": (overhead, {"context": 4_000, "tokens": 256}),
    "http": (http, {"streams": 64, "tokens": 64}),
    "fairness": (
        fairness,
        {"streams": 8, "context": 1_000, "tokens": 200_000, "turn_seconds": 10.0, "seconds": 1e9, "decode_share": 0.75},
    ),
    "backpressure": (backpressure, {"running": 8, "waiting": 32, "tokens": 256, "requests": 100}),
    "soak": (
        soak,
        {"connections": 1_000, "streams": 200, "seconds": 600.0, "warm_seconds": 60.0, "leaving": 0.4},
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for what, (_, numbers) in BENCHES.items():
        command = commands.add_parser(what)
        command.add_argument("--model", default="models/cairn-4m")
        command.add_argument("--threads", type=int, default=None, help="CPU threads of a forward pass")
        command.add_argument("--json", type=Path, help="write the result here")
        for name, default in numbers.items():
            command.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = parser.parse_args()
    result = BENCHES[options.what][0](options)
    show(options.what, result)
    chosen = {name: value for name, value in vars(options).items() if name not in ("what", "json")}
    write_json(options.json, result | {"options": chosen})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
