"""`python -m bench.perplexity`: the shape of the paper's tables, for two models that this repository trained.

Segments of the held-out books are read in texts of each length of `--lengths`, every text on its own, and every
row scores the same tokens: all but those that begin a text of the shortest length. Rows compare token by
token, so differences have small errors. Each row is printed when it is done; `--print FILE` prints
a result as markdown.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from bench.knn_lm import KnnScorer, Mixing, tune
from bench.perplexity_table import Result, heading, line, markdown, summary
from bench.report import write_json
from bench.scoring import LandmarkScorer, PlainScorer, Reading, Scorer
from engine.attention import Sharing
from training import HELD_OUT, read_documents

LENGTHS = (512, 2048, 4096, 16384)
TUNED_ON = "Persuasion"
"""A book of the training set; the kNN-LM's two numbers are tuned on it."""


@dataclass(frozen=True)
class Row:
    """One way to predict; the first row is what the others are compared with.

    Attributes:
        name: as printed
        reading: how the landmark model reads; None is the plain model
        window: of the plain model; None takes the whole text
        neighbours: mix in what followed like states in the text's own past (kNN-LM)
        mixings: how, by length of the text
    """

    name: str
    reading: Reading | None = None
    window: int | None = None
    neighbours: bool = False
    mixings: tuple[tuple[int, Mixing], ...] = ()


@dataclass(frozen=True)
class Options:
    """What the command was asked.

    Attributes:
        plain, landmark: folders of the models
        segments: of each book, evenly spread; each as long as the longest of `lengths`
        lengths: of the texts that are read, rising, each a multiple of the one before
        window, stride: of the plain model; its trained length, and how far it slides
    """

    plain: str
    landmark: str
    data: Path
    segments: int
    lengths: tuple[int, ...]
    window: int
    stride: int


@dataclass(frozen=True)
class Job:
    """What a worker needs to know: one row on one segment."""

    row: Row
    segment: int
    options: Options


def rows(window: int) -> list[Row]:
    """All rows, the baseline first."""
    tokens, heads = Sharing(tokens=True), Sharing(heads=True)
    return [
        Row(f"plain, window of {window}", window=window),
        Row("plain, the whole text"),
        Row("plain, kNN-LM", window=window, neighbours=True),
        Row("landmarks, local window", Reading(0)),
        *(Row(f"landmarks, k = {k}", Reading(k)) for k in (2, 4, 8)),
        *(Row(f"landmarks, k = {k}, shared over tokens", Reading(k, tokens)) for k in (2, 4)),
        *(Row(f"landmarks, k = {k}, shared over heads", Reading(k, heads)) for k in (2, 4)),
        *(Row(f"landmarks, k = {k}, the paper's cutting", Reading(k, paper=True)) for k in (2, 4)),
    ]


# -- texts ---------------------------------------------------------------------------------------------------


@functools.cache
def segments(options: Options, titles: tuple[str, ...]) -> list[list[int]]:
    """Segments of each book, evenly spread: token ids, each as many as the longest length."""
    tokenizer = AutoTokenizer.from_pretrained(options.plain)
    longest, found = options.lengths[-1], []
    for text in books(options.data, titles):
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        found += [ids[start : start + longest] for start in spread(len(ids), longest, options.segments)]
    return found


def books(data: Path, titles: tuple[str, ...]) -> list[str]:
    """The texts of these titles."""
    texts = {book.title: book.text for book in read_documents(data) if book.title in titles}
    if missing := set(titles) - texts.keys():
        raise SystemExit(f"{data} lacks {', '.join(sorted(missing))}")
    return [texts[title] for title in titles]


def spread(tokens: int, longest: int, count: int) -> list[int]:
    """Where `count` segments of a text begin: in the middle of equal shares of it."""
    share = tokens / count
    if share < longest:
        raise SystemExit(f"a book of {tokens} tokens has no {count} segments of {longest}; ask for fewer --segments")
    return [int(share * i + (share - longest) / 2) for i in range(count)]


# -- scoring -------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def scorer(row: Row, options: Options) -> Scorer:
    """A worker keeps the model of its row."""
    if row.reading is not None:
        return LandmarkScorer(options.landmark, row.reading, options.window)
    plain = PlainScorer(options.plain, row.window, options.stride)
    return KnnScorer(plain, options.window, dict(row.mixings)) if row.neighbours else plain


def segment_losses(scorer: Scorer, tokens: list[int], lengths: tuple[int, ...]) -> Tensor:
    """Losses (lengths, pieces, shortest - 1) of the scored tokens of a segment, read in texts of each length.

    A piece is as long as the shortest text; its first token is not scored, since there nothing would stand before it.
    """
    by_length = []
    for length in lengths:
        texts = [tokens[start : start + length] for start in range(0, len(tokens), length)]
        unscored = torch.full((1,), torch.nan)  # a text's first token
        losses = torch.cat([torch.cat((unscored, scorer.losses(text))) for text in texts])
        by_length.append(losses.unflatten(0, (-1, lengths[0]))[:, 1:])
    return torch.stack(by_length)


def work(job: Job) -> Tensor:
    """Losses (lengths, pieces, shortest - 1)."""
    tokens = segments(job.options, HELD_OUT)[job.segment]
    return segment_losses(scorer(job.row, job.options), tokens, job.options.lengths)


def tuned(job: tuple[Options, int]) -> Mixing:
    """The kNN-LM's numbers for one length, from one segment of a training book read in texts of that length."""
    options, length = job
    (tokens,) = segments(replace(options, segments=1), (TUNED_ON,))
    texts = [tokens[start : start + length] for start in range(0, len(tokens), length)]
    plain = PlainScorer(options.plain, options.window, options.stride)
    return tune(plain, options.window, texts)


def measure(options: Options, workers: int, wanted: str) -> Iterator[Result]:
    """Results row by row."""
    first, *others = rows(options.window)
    count, baseline = len(segments(options, HELD_OUT)), None
    with pool(workers) as every:
        for row in [first, *(row for row in others if wanted in row.name)]:
            begun = time.perf_counter()
            if row.neighbours:
                found = every(tuned, [(options, length) for length in options.lengths])
                row = replace(row, mixings=tuple(zip(options.lengths, found, strict=True)))
            losses = torch.stack(list(every(work, [Job(row, i, options) for i in range(count)])))
            baseline = losses if baseline is None else baseline
            seconds = time.perf_counter() - begun
            mixed = {str(length): asdict(mixing) for length, mixing in row.mixings}
            yield summary(row.name, losses, baseline, options.lengths, seconds, mixed)


@contextmanager
def pool(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map` over so many processes, each with its share of the cores; over none if one is enough."""
    if workers == 1:
        yield map
        return
    threads, context = max(1, (os.cpu_count() or 1) // workers), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (threads,)) as processes:
        yield processes.map


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", default="models/books-plain", help="a model of the recipe books-plain")
    parser.add_argument("--landmark", default="models/books-landmark", help="a model of the recipe books-landmark")
    parser.add_argument("--data", type=Path, default=Path("../shared/corpus/books.jsonl.xz"), help="the books")
    parser.add_argument("--segments", type=int, default=1, help="of each book; four times as many halve the errors")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="of the texts, in tokens")
    parser.add_argument("--window", type=int, default=512, help="of the plain model: what it was trained on")
    parser.add_argument("--stride", type=int, default=256, help="how far the window slides")
    parser.add_argument("--rows", default="", help="only the rows whose names hold this, and the baseline")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--json", type=Path, help="write the result here, row by row")
    told = "print results of this bench or of bench.passkey_curve as markdown and do nothing else"
    parser.add_argument("--print", type=Path, nargs="+", metavar="FILE", help=told)
    return parser.parse_args()


def main() -> int:
    options = parse()
    if options.print:
        print("\n\n".join(markdown(json.loads(file.read_text())) for file in options.print))
        return 0
    for path in (options.data, Path(options.plain), Path(options.landmark)):
        if not path.exists():
            raise SystemExit(f"{path} is missing; docs/paper.md tells where it comes from")
    names = ("plain", "landmark", "data", "segments", "window", "stride")
    asked = Options(**{name: getattr(options, name) for name in names}, lengths=tuple(options.lengths))
    found: list[Result] = []
    print(heading(asked.lengths))
    for result in measure(asked, options.workers, options.rows):
        print(line(result), flush=True)
        found.append(result)
        settings = asdict(asked) | {"data": asked.data.name, "books": HELD_OUT, "tuned_on": TUNED_ON}
        write_json(options.json, {**settings, "rows": [asdict(result) for result in found]})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
