"""`python -m bench.window`: what a small window onto host memory holds, and what asking ahead brings.

On a CPU, which does with a part of its own memory what a GPU would do with its own. Sessions of one length decode
together; of the heads of blocks that they fetch, how many lay in the window, how many of these because they had been
asked for ahead, and how many had to be waited for. Counts alone: times on a CPU would say nothing of a GPU's.
"""

from __future__ import annotations

import argparse
import queue
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.report import write_json
from engine import EngineConfig, Failed, Finished, Generation, SamplingParams, StepReport, load_engine

WARM = 4
"""Steps in which nothing is counted: the first ones after a prompt remember little."""


@dataclass(frozen=True)
class Row:
    """What a decode step of all sessions fetched, in heads of blocks.

    Attributes:
        window: MiB for pages and landmarks
        share: of the fetched ones that lay in the window
        brought: by asking ahead
        used: of these, the share that was fetched then
        waited: not there when they were located
    """

    window: float
    sessions: int
    fetched: float
    share: float
    brought: float
    used: float
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

    def row(self, window: float) -> Row:
        steps, fetched, brought = (max(1, self.sums[name]) for name in ("steps", "fetched", "brought"))
        share, used = 1 - self.sums["waited"] / fetched, self.sums["used"] / brought
        each = {name: self.sums[name] / steps for name in ("fetched", "brought", "waited")}
        return Row(window, self._sessions, share=share, used=used, **each)


def measure(options: argparse.Namespace, window: float, sessions: int) -> Row:
    """Let so many sessions decode through a window."""
    counted = Counted(sessions)
    config = EngineConfig(
        kv_bytes=int(window * (1 << 20)), host_kv_bytes=options.host << 20, max_running=sessions, step_tokens=128,
        audit_rate=0.0, prefix_cache=False, device="cpu", threads=options.threads,
    )  # fmt: skip
    engine = load_engine(options.model, config, observe=counted)
    engine.start()
    vocabulary, landmark = engine.description.vocab_size, engine.description.landmark_token_id
    events: queue.Queue[Any] = queue.Queue()
    sampling = SamplingParams(max_tokens=options.count + WARM + sessions * options.tokens // 100, ignore_eos=True)
    for number in range(sessions):
        random = torch.Generator().manual_seed(number)
        tokens = torch.randint(vocabulary // 8, vocabulary, (options.tokens,), generator=random).tolist()
        text = tuple(token - (token == landmark) for token in tokens)
        engine.submit(Generation(str(number), text, sampling), events.put)
    for _ in range(sessions):
        while not isinstance(event := events.get(), Finished):
            if isinstance(event, Failed):
                raise event.error
    engine.stop()
    return counted.row(window)


def markdown(rows: list[Row]) -> str:
    """A table."""
    lines = ["| window | sessions | fetched | in the window | brought ahead | used of these | waited for |"]
    lines.append("|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        shares = f"{row.share:.1%} | {row.brought:.1f} | {row.used:.1%}"
        lines.append(f"| {row.window:g} MiB | {row.sessions} | {row.fetched:.0f} | {shares} | {row.waited:.1f} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.window", description=__doc__)
    parser.add_argument("--model", default="models/cairn-4m")
    parser.add_argument("--tokens", type=int, default=4000, help="of each session")
    parser.add_argument("--count", type=int, default=60, help="steps that are counted")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--windows", type=float, nargs="+", default=[8, 16, 32, 64], help="MiB")
    parser.add_argument("--host", type=int, default=1024, help="MiB of host memory")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    rows = [measure(options, window, sessions) for sessions in options.sessions for window in options.windows]
    print(markdown(rows))
    if options.json:
        write_json(options.json, {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
