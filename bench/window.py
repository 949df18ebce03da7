"""`python -m bench.window`: what a small window onto host memory holds, and what asking ahead brings.

On a CPU, which does with a part of its own memory what a GPU would do with its own. Sessions of one length decode
together; of the heads of blocks that they fetch, how many lay in the window, how many of these because they had been
asked for ahead, and how many had to be waited for. Counts alone: times on a CPU would say nothing of a GPU's.
"""

from __future__ import annotations

import argparse
import itertools
import queue
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from bench.passkey import file_tokens, repeated
from bench.report import write_json
from engine import (
    EngineConfig,
    Failed,
    Finished,
    Generation,
    InvalidParameter,
    ModelDescription,
    OutOfRoom,
    SamplingParams,
    StepReport,
    load_engine,
)

WARM = 4
"""Steps in which nothing is counted: the first ones after a prompt remember little."""


@dataclass(frozen=True)
class Row:
    """What a decode step of all sessions fetched, in heads of blocks.

    Attributes:
        tokens: of each session
        window: MiB for pages and landmarks
        share: of the fetched ones that lay in the window
        brought: by asking ahead
        used: of these, the share that was fetched then; None where there were fewer than one in a step
        waited: not there when they were located
    """

    tokens: int
    window: float
    sessions: int
    fetched: float
    share: float
    brought: float
    used: float | None
    waited: float


class Counted:
    """Adds up reports of decode steps."""

    def __init__(self, sessions: int) -> None:
        self._sessions = sessions
        self._steps = 0
        self.sums: Counter[str] = Counter()

    def __call__(self, report: StepReport) -> None:
        if report.phase != "decode" or report.decode_tokens < self._sessions:
            return  # until all of them decode
        self._steps += 1
        if self._steps > WARM:
            waited = report.hits.get("host", 0)
            self.sums.update(steps=1, fetched=report.blocks_selected, waited=waited)
            self.sums.update(brought=report.foreseen, used=report.guessed)

    def row(self, tokens: int, window: float) -> Row:
        steps = max(1, self.sums["steps"])
        each = {name: self.sums[name] / steps for name in ("fetched", "brought", "waited")}
        share = 1 - self.sums["waited"] / max(1, self.sums["fetched"])
        used = self.sums["used"] / self.sums["brought"] if self.sums["brought"] >= steps else None
        return Row(tokens, window, self._sessions, share=share, used=used, **each)


class Sessions:
    """An engine with a window, and the sessions in it."""

    def __init__(self, options: argparse.Namespace, window: float, sessions: int) -> None:
        self.counted = Counted(sessions)
        config = EngineConfig(
            kv_bytes=int(window * (1 << 20)), host_kv_bytes=options.host << 20, max_running=sessions, step_tokens=128,
            audit_rate=0.0, prefix_cache=False, device="cpu", threads=options.threads,
        )  # fmt: skip
        self.engine = load_engine(options.model, config, observe=self.counted)
        self.engine.start()
        self._ids = [self.engine.create_session("").id for _ in range(sessions)]

    def all(self, texts: list[list[int]], count: int) -> None:
        """Give each session a text, and let all of them decode so many tokens together."""
        events: queue.Queue[Any] = queue.Queue()
        sampling = SamplingParams(max_tokens=count, ignore_eos=True)
        for session, text in zip(self._ids, texts, strict=True):
            self.engine.submit(Generation(session, tuple(text), sampling, session_id=session), events.put)
        for _ in self._ids:
            while not isinstance(event := events.get(), Finished):
                if isinstance(event, Failed):
                    raise event.error


def measure(options: argparse.Namespace, tokens: int, window: float, sessions: int) -> Row:
    """Let so many sessions decode through a window."""
    running = Sessions(options, window, sessions)
    try:
        whole = texts(options, tokens, sessions, running.engine.description)
        running.all([text[:-1] for text in whole], 0)  # first they are read, so that all decode from one step on
        running.all([text[-1:] for text in whole], options.count + WARM)
    finally:
        running.engine.stop()
    return running.counted.row(tokens, window)


def texts(options: argparse.Namespace, tokens: int, sessions: int, description: ModelDescription) -> list[list[int]]:
    """Of each session another part of the haystack, or random tokens."""
    if options.haystack is None:
        random, landmark = torch.Generator().manual_seed(0), description.landmark_token_id
        low, high = description.vocab_size // 8, description.vocab_size
        drawn = torch.randint(low, high, (sessions, tokens), generator=random)
        return [[token - (token == landmark) for token in row] for row in drawn.tolist()]
    whole = file_tokens(options.haystack, AutoTokenizer.from_pretrained(options.model))
    whole = repeated(whole, sessions * tokens)
    return [whole[number * tokens :][:tokens] for number in range(sessions)]


def markdown(rows: list[Row]) -> str:
    """A table."""
    lines = ["| tokens | window | sessions | fetched | in the window | brought ahead | used of these | waited for |"]
    lines.append("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        used = "" if row.used is None else f"{row.used:.1%}"
        shares = f"{row.share:.1%} | {row.brought:.1f} | {used} | {row.waited:.1f}"
        lines.append(f"| {row.tokens:,} | {row.window:g} MiB | {row.sessions} | {row.fetched:.0f} | {shares} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.window", description=__doc__)
    parser.add_argument("--model", default="models/cairn-4m")
    parser.add_argument("--haystack", type=Path, help="a text that the sessions read; random tokens without it")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4000, 16_000], help="of each session")
    parser.add_argument("--count", type=int, default=60, help="steps that are counted")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--windows", type=float, nargs="+", default=[8, 16, 32, 64, 128, 256], help="MiB")
    parser.add_argument("--host", type=int, default=1024, help="MiB of host memory")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    rows = []
    for sessions, tokens, window in itertools.product(options.sessions, options.tokens, options.windows):
        try:
            rows.append(measure(options, tokens, window, sessions))
        except (InvalidParameter, OutOfRoom) as error:
            print(f"{sessions} sessions of {tokens} tokens in {window:g} MiB: {error}")
    print(markdown(rows))
    if options.json:
        write_json(options.json, {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
