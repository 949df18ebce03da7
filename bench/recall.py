"""`python -m bench.recall --model DIR --haystack FILES…`: how near retrieval comes to full attention, and at what cost.

For each way to read (`bench/recall_rules.py`) and budget, held-out text and texts with hidden keys are read as
they would be served, and compared with the same model reading everything:

- mass: share of exact attention that the blocks read have (the audit's samples, at the last positions)
- error: |output - exact output| / |exact output| of the attention, mean over layers, heads and the last positions
- KL: of the next token's distribution against full attention's, in nats, at the last positions
- keys, many: digits of pass keys that are right, with one and with eight keys in a text
- bytes: keys, values and landmarks read per token, as a share of all keys and values

Up to the trained length positions are absolute; beyond it they are bounded, also those of full attention.
"""

from __future__ import annotations

import argparse
import bisect
import functools
import multiprocessing
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bench.passkey import FACT, QUESTION, Prompt, draw_prompts, read_haystack
from bench.recall_rules import BLOCK, SINKS, WAYS, Way
from bench.recall_whole import whole_model
from bench.report import write_json
from cache import BlockStore, CacheLayout, DeviceTier, Session
from engine import (
    EngineConfig,
    LoadedModel,
    ModelRunner,
    ReferenceAttention,
    RetrievalSettings,
    Span,
    Step,
    choose_attention,
    index_shapes,
    load_model,
)
from engine.audit import Audit

LAST = 128
"""Positions at a text's end at which everything is measured."""
BUDGETS = (0.01, 0.02, 0.05, 0.10)
MANY = 8
"""Keys in a text of many."""
SAY = "The pass key for {name} is"


@dataclass(frozen=True)
class Quiz:
    """A text with hidden keys, and for each of them the tokens that ask for it and those that answer."""

    tokens: list[int]
    questions: list[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Texts:
    """What is read at one length.

    Attributes:
        prose: held-out texts
        one, many: texts with one and with MANY hidden keys
    """

    prose: list[list[int]]
    one: list[Quiz]
    many: list[Quiz]


@dataclass(frozen=True)
class Job:
    """What a worker is told: a way and a budget at a length."""

    model: str
    haystack: tuple[Path, ...]
    length: int
    positions: str
    way: Way
    budget: float
    count: int
    by: str = "blocks"


@dataclass(frozen=True)
class Measured:
    """One line of the result."""

    way: str
    source: str
    length: int
    budget: float
    bytes: float
    mass: float
    error: float
    kl: float
    keys: float
    many: float
    by: str = "blocks"


class Reader:
    """A model that reads texts under one configuration.

    Args:
        model: shared by readers
        config: how it reads
        everything: fetch all blocks instead
    """

    def __init__(self, model: LoadedModel, config: EngineConfig, *, everything: bool = False) -> None:
        self._model, self._everything = model, everything
        self.settings, self.layout = config.retrieval(model), config.layout(model)
        self._store = BlockStore(DeviceTier(self.layout, 1 << 30))
        attention = choose_attention(model, self.settings, self.layout)
        self.compared = Compared(attention, ReferenceAttention(model.layers, self.layout, self.settings))
        self._runner = ModelRunner(model, self.compared)
        self.blocks_fetched = 0.0
        self.audit = Audit()

    def read(self, tokens: list[int]) -> Session:
        """A session of these tokens."""
        session = Session("text", self._store, index_shapes(self._model, self.settings, self.layout))
        for start in range(0, len(tokens), 512):
            self.go_on(session, tokens[start : start + 512])
        return session

    def go_on(self, session: Session, tokens: list[int], *, measure: bool = False) -> Tensor:
        """Logits (tokens, vocabulary) of further tokens, after those that a fork computes again."""
        session.append(tokens)
        session.reserve(len(session.tokens))
        fetch = None if self._everything else self.settings.blocks_per_head
        start, end = session.computed, len(session.tokens)
        span = Span(session, start, end, session.tokens[start:].tolist(), fetch, top_p=self.settings.top_p)
        if measure:
            span = replace(span, audit_rate=1.0, audit=self.audit)
        self.compared.on = measure
        step = Step([span])
        logits = self._runner.run(step)
        if measure:
            self.blocks_fetched = step.report.blocks_selected / max(1, step.report.queries)
        return logits


class Compared:
    """An attention beside the exact one, from the same queries, keys and values."""

    def __init__(self, attention: ReferenceAttention, exact: ReferenceAttention) -> None:
        self._attention, self._exact = attention, exact
        self.on = False
        self.errors: list[float] = []

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step, scaling: float, softcap: float | None
    ) -> Tensor:
        output = self._attention(layer, q, k, v, step, scaling, softcap)
        if self.on:
            spans = [replace(span, blocks_per_head=None, audit_rate=0.0) for span in step.spans]
            index = step.spans[0].session.indexes
            kept, step.spans[0].session.indexes = index, [None] * len(index)  # what is stored is not indexed twice
            exact = self._exact(layer, q, k, v, Step(spans), scaling, softcap)
            step.spans[0].session.indexes = kept
            relative = (output - exact).norm(dim=-1) / exact.norm(dim=-1).clamp(min=1e-9)
            self.errors.append(float(relative.mean()))
        return output

    def listed(self, *given: object) -> None:
        """It goes layer by layer."""


def texts(job: Job, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """What is read: different stretches of the haystacks, the same for every way and budget."""
    rng = random.Random(1)
    haystacks = [read_haystack(path, tokenizer, 100_000) for path in job.haystack]
    found = Texts([], [], [])
    prompts = iter(draw_prompts(200, seed=2))
    for i in range(job.count):
        start = rng.randrange(100_000 - job.length)
        stretch = haystacks[i % len(haystacks)][start : start + job.length]
        found.prose.append(stretch)
        found.one.append(quiz(stretch, [next(prompts)], tokenizer))
        found.many.append(quiz(stretch, [next(prompts) for _ in range(MANY)], tokenizer))
    return found


def quiz(stretch: list[int], facts: list[Prompt], tokenizer: PreTrainedTokenizerBase) -> Quiz:
    """A stretch of text that tells the facts at their depths, with the questions no longer than it was before."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    room = len(stretch) - 80 - 25 * len(facts)
    tokens, done = [], 0
    for fact in sorted(facts, key=lambda fact: fact.depth):
        cut = int(fact.depth * room)
        tokens += stretch[done:cut] + encode(FACT.format(name=fact.name, key=fact.key))
        done = cut
    asked = [encode(QUESTION.format(name=f.name) + "\n" + SAY.format(name=f.name)) for f in facts]
    answers = [encode(f" {fact.key}") for fact in facts]
    return Quiz(tokens + stretch[done:room], list(zip(asked, answers, strict=True)))


def answered(reader: Reader, asked: Quiz) -> list[bool]:
    """For each token of the answers whether it is the likeliest one after those before it."""
    session = reader.read(asked.tokens)
    results = []
    for question, answer in asked.questions:
        fork = session.fork("fork")
        logits = reader.go_on(fork, question + answer)
        said = logits[-len(answer) - 1 : -1].argmax(-1).tolist()
        results += [token == true for token, true in zip(said, answer, strict=True)]
        fork.close()
    session.close()
    return results


def distributions(reader: Reader, prose: list[int], *, measure: bool) -> Tensor:
    """Log-probabilities (LAST, vocabulary) at a text's last positions."""
    session = reader.read(prose[:-LAST])
    logits = reader.go_on(session, prose[-LAST:], measure=measure)
    session.close()
    return logits.log_softmax(-1)


@functools.cache
def exact(model: str, positions: str, haystack: tuple[Path, ...], length: int, count: int) -> list[Tensor]:
    """Full attention's log-probabilities for the prose; once in each process."""
    job = Job(model, haystack, length, positions, WAYS[0], 0.0, count)
    if positions == "absolute":
        prose = texts(job, AutoTokenizer.from_pretrained(model)).prose
        return [whole_model(model).logits(text, LAST).log_softmax(-1) for text in prose]
    reader = Reader(loaded(model), exact_config(positions), everything=True)
    read = texts(job, AutoTokenizer.from_pretrained(model))
    return [distributions(reader, prose, measure=False) for prose in read.prose]


@functools.cache
def loaded(model: str) -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(model, "float32")


def affordable(job: Job, model: LoadedModel) -> int:
    """Blocks of BLOCK positions that a job may spend: such a share of all, or as many as such a share of bytes buys."""
    whole = job.length // BLOCK
    if job.by == "blocks":
        return round(job.budget * job.length / BLOCK)

    def share(blocks: int) -> float:
        config = job.way.config(blocks, job.positions)
        settings = config.retrieval(model)
        fetched = float(settings.blocks_per_head + settings.outlier_blocks)
        return byte_share(settings, config.layout(model), fetched, job.length, model)

    return bisect.bisect_right(range(1, whole), job.budget, key=share)


def byte_share(
    settings: RetrievalSettings, layout: CacheLayout, fetched: float, length: int, model: LoadedModel
) -> float:
    """Keys, values, copies and landmarks that a token reads, as a share of all keys and values of a text."""
    size, itemsize = layout.block_size, layout.dtype.itemsize
    if settings.blocks_per_head * size >= length:
        return 1.0
    near = (settings.recent_blocks + 0.5 + settings.sink_blocks) * size
    shape = settings.index_shape(model.head_dim, size)
    read = 2 * model.head_dim * (near + fetched * size) * itemsize
    read += min(settings.copied_blocks, length // size) * shape.copy_bytes
    looks = settings.blocks_per_head or settings.copied_blocks or settings.estimate_rest
    index = length / size * (shape.block_bytes - shape.copy_bytes)
    index = index if looks and settings.rule.sees_content else 0
    whole = 2 * model.head_dim * length * itemsize
    dense = settings.dense_layers / len(model.layers)
    return dense + (1 - dense) * min(1.0, (read + index) / whole)


def measure(job: Job) -> Measured:
    """One way at one budget."""
    model, tokenizer = loaded(job.model), AutoTokenizer.from_pretrained(job.model)
    reader = Reader(model, job.way.config(affordable(job, model), job.positions))
    read = texts(job, tokenizer)
    if job.way.spends == "everything" and job.positions == "absolute":
        keys, many = (
            [hit for quiz in asked for hit in whole_model(job.model).answered(quiz.tokens, quiz.questions)]
            for asked in (read.one, read.many)
        )
        nearness = (1.0, 1.0, 0.0, 0.0)  # bytes, mass, error, divergence
        return Measured(job.way.name, job.way.source, job.length, job.budget, *nearness, mean(keys), mean(many), job.by)
    divergences = []
    for prose, true in zip(
        read.prose, exact(job.model, job.positions, job.haystack, job.length, job.count), strict=True
    ):
        seen = distributions(reader, prose, measure=True)
        divergences.append(float((true.exp() * (true - seen)).sum(-1).mean()))
    keys, many = ([hit for quiz in asked for hit in answered(reader, quiz)] for asked in (read.one, read.many))
    return Measured(
        job.way.name,
        job.way.source,
        job.length,
        job.budget,
        byte_share(reader.settings, reader.layout, reader.blocks_fetched, job.length, model),
        mean(reader.audit.masses),
        mean(reader.compared.errors),
        mean(divergences),
        mean(keys),
        mean(many),
        job.by,
    )


def exact_config(positions: str) -> EngineConfig:
    """Full attention; bounded, it has the same recent blocks and sink as the others."""
    return replace(WAYS[0].config(0, positions), landmarks="mean", sink_blocks=SINKS)


def mean(values: list[float] | list[bool]) -> float:
    return sum(values) / max(1, len(values))


def line(row: Measured) -> str:
    name = f"{row.way} ({row.source})"
    shares = f"bytes {row.bytes:6.1%}  mass {row.mass:6.1%}  error {row.error:6.3f}  KL {row.kl:8.4f}"
    return (
        f"{row.length:6} {row.budget:5.0%} of {row.by} {name:44} {shares}  keys {row.keys:5.0%}  many {row.many:5.0%}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/books-plain-2k", help="a plain model")
    parser.add_argument("--haystack", type=Path, nargs="+", required=True, help="texts that it was not trained on")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--trained", type=int, default=2048, help="up to here positions are absolute")
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS))
    parser.add_argument("--by", choices=("blocks", "bytes"), default="blocks", help="what budgets are shares of")
    parser.add_argument("--ways", nargs="+", choices=[way.name for way in WAYS], help="only these")
    parser.add_argument("--texts", type=int, default=4, help="texts of each kind")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    ways = [way for way in WAYS if options.ways is None or way.name in options.ways]
    jobs = [
        Job(
            options.model,
            tuple(options.haystack),
            length,
            positions(length, options.trained),
            way,
            budget,
            options.texts,
            options.by,
        )
        for length in options.lengths
        for budget in options.budgets
        for way in ways
    ]
    result: dict[str, Any] = {"model": options.model, "trained": options.trained, "texts": options.texts, "rows": []}
    for row in run(jobs, options.workers):
        print(line(row), flush=True)
        result["rows"].append(asdict(row))
        write_json(options.json, result)
    return 0


def positions(length: int, trained: int) -> str:
    return "absolute" if length <= trained else "bounded"


def run(jobs: list[Job], workers: int) -> Iterator[Measured]:
    """The jobs' results in their order."""
    if workers == 1:
        yield from map(measure, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(measure, jobs)


if __name__ == "__main__":
    raise SystemExit(main())
