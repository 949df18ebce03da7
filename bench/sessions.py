"""`python -m bench.sessions --haystack FILES… --folder DIR`: what durable sessions cost, with little memory and a disk.

- long: one session grows to a length while memory for keys, values and landmarks stays as small as it is set; at each
  length, milliseconds per token of an answer in a fork, memory of the process, hits and bytes moved per token
- fork: the time of a fork and of a hundred, and the memory that they take
- restore: the server stops and starts; the first new token of the long session against having read it
- budgets: questions to the long session with more or less memory
- prefix: clients that share a preamble, one after the other: how much of it is computed

Seconds are this machine's and noisy; ratios and bytes are what counts.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import queue
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from bench.passkey import file_tokens, repeated
from bench.passkey_curve import resident
from bench.report import write_json
from engine import (
    EngineConfig,
    Failed,
    Finished,
    Generation,
    SamplingParams,
    SessionTooLong,
    StepReport,
    Token,
    load_engine,
)

LENGTHS = (4_000, 16_000, 64_000, 125_000, 250_000, 500_000, 1_000_000)
BUDGETS = (32, 64, 128, 256, 512)
"""MiB."""
QUESTIONS = ("Where does the road lead to?", "What did she say to her father?", "Who came to the house that night?")


@dataclass(frozen=True)
class Point:
    """The long session at one length; bytes beyond those of the loaded model."""

    tokens: int
    read_seconds: float
    ms_per_token: float
    resident_bytes: int
    stored_bytes: int
    hit_rate: float
    moved_per_token: float
    found_tokens: int = 0
    """Of the text up to here, what lay on the disk or in memory when reading began."""


class Server:
    """An engine, and what its steps report.

    Args:
        folder: where sessions are stored; None keeps them in memory
        memory: MiB for keys, values and landmarks
    """

    def __init__(self, options: argparse.Namespace, folder: Path | None, memory: int) -> None:
        self.hits: Counter[str] = Counter()
        self.moved: Counter[tuple[str, str]] = Counter()
        self.prefilled = 0
        self.restored: list[float] = []
        config = EngineConfig(
            kv_bytes=memory << 20,
            disk_kv_path=None if folder is None else str(folder),
            disk_kv_bytes=options.disk_gib << 30,
            threads=options.threads,
            audit_rate=0.0,
        )
        self.engine = load_engine(options.model, config, observe=self._observe)
        self.engine.start()
        self._count = 0

    def _observe(self, report: StepReport) -> None:
        self.hits.update(report.hits)
        self.moved.update(report.moved)
        self.prefilled += report.prefill_tokens
        self.restored += report.restores

    def ask(self, tokens: list[int], session: str | None = None, count: int = 0) -> tuple[list[float], Finished]:
        """Read tokens and draw `count`; when each came, as time.perf_counter(), and the end."""
        events: queue.Queue[Any] = queue.Queue()
        sampling = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
        self._count += 1
        generation = Generation(str(self._count), tuple(tokens), sampling, session_id=session)
        self.engine.submit(generation, lambda event: events.put((time.perf_counter(), event)))
        came = []
        while True:
            at, event = events.get()
            if isinstance(event, Token):
                came.append(at)
            elif isinstance(event, Failed):
                raise event.error
            elif isinstance(event, Finished):
                return came, event

    def question(self, session: str, tokens: list[int], count: int) -> float:
        """Milliseconds per token of an answer in a fork of the session."""
        fork = self.engine.fork_session(session, "").id
        came, _ = self.ask(tokens, fork, count)
        self.engine.delete_session(fork, "")
        return 1000 * statistics.median(b - a for a, b in itertools.pairwise(came))

    def settle(self) -> None:
        """Wait until the disk has everything."""
        while self.engine.stats().unwritten:
            time.sleep(0.05)

    def stop(self) -> None:
        self.settle()
        self.engine.stop()
        gc.collect()


def kept_or_new(server: Server) -> tuple[str, int]:
    """The session that an earlier run, stopped or killed, left in the folder, or a new one; its tokens."""
    kept = max(server.engine.list_sessions(""), key=lambda info: info.tokens, default=None)
    return (kept.id, kept.tokens) if kept else (server.engine.create_session("").id, 0)


def long(
    server: Server, session: str, done: int, text: list[int], questions: list[list[int]], known: list[Point]
) -> Iterator[Point]:
    """See the module; the points that are not known, of a session that has read `done` tokens."""
    base = resident()
    for length in LENGTHS:
        if length > len(text) or length <= max((point.tokens for point in known), default=0):
            continue
        begun = time.perf_counter()
        _, end = server.ask(text[done:length] or text[:1], session)
        read, done = time.perf_counter() - begun, max(done, length)
        server.hits.clear()
        server.moved.clear()
        times = [server.question(session, question, 32) for question in questions]
        drawn = len(questions) * 32 + sum(map(len, questions))
        tiers = server.engine.stats().tiers
        point = Point(
            length,
            read,
            statistics.median(times),
            resident() - base,
            next(reversed(tiers.values())).used_bytes,
            server.hits["device"] / max(1, server.hits.total()),
            server.moved.total() / drawn,
            end.usage.cached_tokens,
        )
        print(point, flush=True)
        yield point


def forks(server: Server, session: str) -> dict[str, float]:
    """Seconds and bytes of forks."""
    used, memory = server.engine.stats().tiers["device"].blocks, resident()
    begun = time.perf_counter()
    made = [server.engine.fork_session(session, "").id]
    first = time.perf_counter() - begun
    made += [server.engine.fork_session(session, "").id for _ in range(99)]
    seconds = time.perf_counter() - begun
    found = {
        "first_seconds": first,
        "hundred_seconds": seconds,
        "hundred_blocks": server.engine.stats().tiers["device"].blocks - used,
        "hundred_resident_bytes": resident() - memory,
    }
    for fork in made:
        server.engine.delete_session(fork, "")
    return found


def restore(options: argparse.Namespace, session: str, question: list[int], read: float) -> dict[str, float]:
    """The first token after a restart, against the seconds that reading took."""
    begun = time.perf_counter()
    server = Server(options, options.folder, options.memory)
    started = time.perf_counter()
    came, end = server.ask(question, session, 1)
    found = {
        "start_seconds": started - begun,
        "first_token_seconds": came[0] - started,
        "share_of_reading": (came[0] - started) / read,
        "index_seconds": sum(server.restored),
        "cached_tokens": end.usage.cached_tokens,
        "prompt_tokens": end.usage.prompt_tokens,
    }
    server.stop()
    return found


def budgets(options: argparse.Namespace, session: str, questions: list[list[int]]) -> list[dict[str, float]]:
    """Questions to the long session with other budgets; the second round of them counts, too."""
    rows = []
    for memory in [memory for memory in BUDGETS if memory <= options.memory]:
        server = Server(options, options.folder, memory)
        try:
            times = [server.question(session, question, 64) for question in questions * 2]
        except SessionTooLong as error:  # its landmarks would take more than half of the memory
            print(f"  {memory} MiB: {error}", flush=True)
            server.stop()
            continue
        drawn = 2 * sum(64 + len(question) for question in questions)
        rate = server.hits["device"] / max(1, server.hits.total())
        row = {"mib": memory, "ms_per_token": statistics.median(times), "hit_rate": rate}
        rows.append(row | {"moved_per_token": server.moved.total() / drawn})
        print(row, flush=True)
        server.stop()
    return rows


def prefix(options: argparse.Namespace, text: list[int], clients: int = 50, preamble: int = 20_000) -> dict[str, float]:
    """Clients with one preamble and a question of their own each."""
    server = Server(options, None, 1024)
    times = []
    for client in range(clients):
        begun = time.perf_counter()
        server.ask(text[:preamble] + text[preamble + 40 * client : preamble + 40 * (client + 1)], count=1)
        times.append(time.perf_counter() - begun)
    found = {
        "clients": clients,
        "asked_tokens": clients * (preamble + 40),
        "computed_tokens": server.prefilled,
        "first_seconds": times[0],
        "later_seconds": statistics.median(times[1:]),
        "blocks": server.engine.stats().tiers["device"].blocks,
    }
    server.stop()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/cairn-4m")
    parser.add_argument("--haystack", type=Path, nargs="+", required=True, help="texts to read")
    parser.add_argument(
        "--folder", type=Path, required=True, help="a folder for the sessions: empty, or of a run to go on with"
    )
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--memory", type=int, default=512, help="MiB for keys, values and landmarks")
    parser.add_argument("--disk-gib", type=int, default=16)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, help="write the result here; what it has already is not measured again")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    read = [token for path in options.haystack for token in file_tokens(path, tokenizer)]
    text = repeated(read, options.tokens)
    questions = [list(tokenizer.encode(question, add_special_tokens=False)) for question in QUESTIONS]
    result: dict[str, Any] = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    if "prefix" not in result:
        result["prefix"] = prefix(options, text)
        print(result["prefix"], flush=True)
    points = [Point(**point) for point in result.get("long", [])]
    server = Server(options, options.folder, options.memory)
    server.ask(text[:600], count=4)  # warm, so that memory is counted from here
    session, done = kept_or_new(server)
    for point in long(server, session, done, text, questions, points):
        points.append(point)
        result["long"] = [asdict(point) for point in points]
        write_json(options.json, result)
    result["fork"] = forks(server, session)
    print(result["fork"], flush=True)
    server.stop()
    result["restore"] = restore(options, session, questions[0], sum(point.read_seconds for point in points))
    print(result["restore"], flush=True)
    write_json(options.json, result)
    result["budgets"] = budgets(options, session, questions)
    write_json(options.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
