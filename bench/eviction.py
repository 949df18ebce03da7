"""`python -m bench.eviction`: would memory hold more of what is read if other pages went than the longest unused ones?

Sessions of one length decode together with memory for everything; which pages (a head of a block in a layer) each layer
of each step locates is recorded, and replayed with less memory by rules that let other pages go. Counts alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bench.report import write_json
from bench.window import WARM, Sessions, texts
from cache import Places, Tier

Numbers = NDArray[np.int64]
Worths = NDArray[np.float64]
Rule = Callable[[Worths, Numbers, int], None]
"""Sets what pages that are located now are worth, given what all were, them, and how many were located before."""
MEMORY = 1024
"""MiB while it is recorded."""


@dataclass(frozen=True)
class Row:
    """The share of located pages that lay in memory, by rule.

    Attributes:
        steps: pages in memory, in multiples of what one step locates
        best: if those went that are needed last, which nobody can know
    """

    tokens: int
    sessions: int
    steps: float
    longest_unused: float
    least_often: float
    best: float


class Record:
    """Which pages were located together, in order."""

    def __init__(self, tier: Tier) -> None:
        self.located: list[Numbers] = []
        self._tier, self._locate = tier, tier.locate

    def __call__(self, layer: int, slots: Tensor, heads: Tensor, **how: Any) -> Places:
        slot, head = np.broadcast_arrays(slots.numpy(), heads.numpy())
        page = (layer * self._tier.capacity + slot) * self._tier.layout.kv_heads + head
        self.located.append(np.unique(page))
        return self._locate(layer, slots, heads, **how)


def recorded(options: argparse.Namespace, tokens: int, sessions: int) -> list[Numbers]:
    """What decode steps locate, pages numbered from 0 on."""
    running = Sessions(options, MEMORY, sessions)
    whole = texts(options, tokens, sessions, running.engine.description)
    running.all([text[:-1] for text in whole], 0)
    tier = running.engine._store.tier
    with patch.object(tier, "locate", Record(tier)) as record:
        running.all([text[-1:] for text in whole], options.count + WARM)
    running.engine.stop()
    _, numbers = np.unique(np.concatenate(record.located), return_inverse=True)
    return np.split(numbers, np.cumsum([len(each) for each in record.located])[:-1])


def longest_unused(worth: Worths, located: Numbers, at: int) -> None:
    worth[located] = at


def least_often(worth: Worths, located: Numbers, at: int) -> None:
    """Of all time, the later one first among equals."""
    worth[located] = np.floor(worth[located]) + 1 + at / (at + 1) / 2


class NeededLast:
    """Belady's rule: what is needed last is worth least."""

    def __init__(self, located: list[Numbers]) -> None:
        self._next: list[Worths] = []
        needed = np.full(1 + max(each.max() for each in located), np.inf)
        for at in range(len(located) - 1, -1, -1):
            self._next.append(needed[located[at]])
            needed[located[at]] = at
        self._next.reverse()

    def __call__(self, worth: Worths, located: Numbers, at: int) -> None:
        worth[located] = -self._next[at]


def share(located: list[Numbers], pages: int, rule: Rule) -> float:
    """Of what is located, how much lies in a memory of so many pages; the first quarter fills it and is not counted."""
    count, first = 1 + max(int(each.max()) for each in located), len(located) // 4
    worth, here = np.zeros(count), np.zeros(count, bool)
    found = asked = 0
    for at, each in enumerate(located):
        if at >= first:
            found, asked = found + int(here[each].sum()), asked + len(each)
        rule(worth, each, at)
        here[each] = True
        _let_go(here, worth, each, pages)
    return found / asked


def _let_go(here: NDArray[np.bool_], worth: Worths, located: Numbers, pages: int) -> None:
    """What is worth least and not located now goes, until the rest fits; at last what is located."""
    held = np.flatnonzero(here)
    if (more := len(held) - pages) > 0:
        left = worth[held]
        left[np.isin(held, located)] = np.inf
        here[held[np.argpartition(left, more - 1)[:more]]] = False


def rows(options: argparse.Namespace, tokens: int, sessions: int) -> list[Row]:
    """One for each size of memory that is less than everything."""
    located = recorded(options, tokens, sessions)
    step = sum(map(len, located)) / (options.count + WARM)
    distinct, best = 1 + max(int(each.max()) for each in located), NeededLast(located)
    sizes = [size for size in options.steps if size * step < distinct]
    rules: tuple[Rule, ...] = (longest_unused, least_often, best)
    return [Row(tokens, sessions, size, *(share(located, int(size * step), rule) for rule in rules)) for size in sizes]


def markdown(found: list[Row]) -> str:
    """A table."""
    lines = ["| tokens | sessions | memory, in steps | longest unused goes | least often used goes | best possible |"]
    lines.append("|---:|---:|---:|---:|---:|---:|")
    for row in found:
        shares = f"{row.longest_unused:.1%} | {row.least_often:.1%} | {row.best:.1%}"
        lines.append(f"| {row.tokens:,} | {row.sessions} | {row.steps:g} | {shares} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.eviction", description=__doc__)
    parser.add_argument("--model", default="models/cairn-4m")
    parser.add_argument("--haystack", type=Path, help="a text that the sessions read; random tokens without it")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4000, 16_000], help="of each session")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--count", type=int, default=120, help="steps that are recorded")
    parser.add_argument("--steps", type=float, nargs="+", default=[0.75, 1, 1.5, 2, 4, 8, 16], help="sizes of memory")
    parser.add_argument("--host", type=int, default=2048, help="MiB of host memory")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    found = [
        row for sessions in options.sessions for tokens in options.tokens for row in rows(options, tokens, sessions)
    ]
    print(markdown(found))
    if options.json:
        write_json(options.json, {"rows": [asdict(row) for row in found]})


if __name__ == "__main__":
    main()
