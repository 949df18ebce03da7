"""`python -m training.finetune --base DIR --data FILES… --output DIR`: teach a plain model landmarks, resumable.

Takes any model that Cairn serves, adds the landmark token, trains with the grouped softmax, and writes an ordinary
transformers folder that `serve` serves with trained landmarks. A run that is stopped goes on from `--run` when it is
started again with the same options.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.adaptation import adapt
from training.attention import LandmarkSettings
from training.packing import Encoder, Feed, HeldOut, Split, stack
from training.records import InputError, read_records
from training.tuning import Schedule, Tuning

HELD_ROWS = 64
"""At most so many rows are measured; more would take longer and say little more."""


def parser() -> argparse.ArgumentParser:
    usual = LandmarkSettings()
    made = argparse.ArgumentParser(prog="training.finetune", description=__doc__)
    add = made.add_argument
    add("--base", required=True, help="the plain model: a transformers folder or a hub name")
    add("--data", type=Path, nargs="+", required=True, help=".jsonl, .jsonl.xz or text files (training/records.py)")
    add("--shares", type=float, nargs="+", help="how often each file is drawn from; by their sizes if left out")
    add("--output", type=Path, required=True, help="the folder to write")
    add("--run", type=Path, help="log and checkpoint; OUTPUT.run if left out")
    add("--length", type=int, default=512, help="slots of a row, landmarks included")
    add("--block-size", type=int, default=usual.block_size, help="slots of a block; the last one is the landmark")
    add("--recent-blocks", type=int, default=usual.recent_blocks, help="blocks read at their true distance")
    add("--sink-blocks", type=int, default=usual.sink_blocks, help="first blocks, always read")
    add("--blocks-per-head", type=int, default=usual.blocks_per_head, help="far blocks that each KV head fetches")
    add("--lora", type=int, default=0, metavar="RANK", help="train low-rank updates only; 0 trains all weights")
    add("--bf16", action="store_true", help="compute in bf16; the weights that are trained stay fp32")
    add("--batch", type=int, default=4, help="rows that are computed together")
    add("--accumulate", type=int, default=1, help="batches of one step")
    add("--crowd", type=int, default=0, metavar="SLOTS",
        help="so many last slots of each row also choose among the blocks of the batch's other rows")  # fmt: skip
    add("--rate", type=float, default=1e-4, help="learning rate")
    add("--muon", action="store_true", help="Muon for the matrices, with ten to twenty times AdamW's --rate")
    add("--steps", type=int, default=1000)
    add("--minutes", type=float, default=math.inf, help="stop (resumable) after this long")
    add("--report", type=int, default=100, help="steps between two reports with held-out loss and checkpoint")
    add("--held-out", nargs="+", default=["0.01"], help="a share of the rows, or titles, that are not trained on")
    add("--seed", type=int, default=1)
    add("--threads", type=int, help="CPU threads")
    return made


def check(options: argparse.Namespace) -> None:
    """Refuse options that make no sense before anything is loaded."""
    for path in options.data:
        if not path.is_file():
            raise InputError(f"{path}: there is no such file")
    size = options.block_size
    lowest = {"block_size": 2, "recent_blocks": 0, "sink_blocks": 0, "blocks_per_head": 1, "lora": 0, "batch": 1}
    lowest |= {"accumulate": 1, "crowd": 0, "steps": 1, "report": 1, "length": 1}
    for name, low in lowest.items():
        if getattr(options, name) < low:
            raise InputError(f"--{name.replace('_', '-')} must be at least {low}, not {getattr(options, name)}")
    if options.length % size:
        below = max(1, options.length // size) * size
        raise InputError(
            f"--length {options.length} is not a multiple of --block-size {size}; give {below} or {below + size}"
        )
    fewest = options.recent_blocks + options.sink_blocks + 2
    if options.length < fewest * size:
        raise InputError(
            f"--length {options.length} holds {options.length // size} blocks: with {options.recent_blocks} recent and "
            f"{options.sink_blocks} sink blocks none is ever fetched; give at least {fewest * size}"
        )
    if not options.rate > 0 or not options.minutes > 0:
        raise InputError("--rate and --minutes must be above 0")
    if options.crowd and options.batch == 1:
        raise InputError("--crowd needs other rows: give a --batch of at least 2")
    if options.crowd > options.length:
        raise InputError(f"--crowd {options.crowd} is longer than a row; give at most --length {options.length}")
    if options.muon and options.lora:
        raise InputError("--muon trains whole matrices; leave it or --lora out")
    if options.shares and (len(options.shares) != len(options.data) or min(options.shares) <= 0):
        raise InputError(f"--shares takes one number above 0 for each of the {len(options.data)} files")
    resumes = (run_folder(options) / "checkpoint.pt").exists()
    if options.output.exists() and any(options.output.iterdir()) and not resumes:
        raise InputError(f"{options.output} is not empty; give another --output")


def run_folder(options: argparse.Namespace) -> Path:
    return options.run or options.output.with_name(options.output.name + ".run")


def held_out(wanted: Sequence[str]) -> HeldOut:
    """A share of all rows, or titles."""
    if len(wanted) > 1:
        return HeldOut(0.0, frozenset(wanted))
    try:
        share = float(wanted[0])
    except ValueError:
        return HeldOut(0.0, frozenset(wanted))
    if not 0 < share < 1:
        raise InputError(f"--held-out {wanted[0]}: a share lies between 0 and 1")
    return HeldOut(share, frozenset())


def load_files(options: argparse.Namespace, encoder: Encoder) -> list[Split]:
    """Rows of each file; raises InputError."""
    apart, seen, splits = held_out(options.held_out), set[str](), []
    width = options.length // options.block_size * (options.block_size - 1)
    for path in options.data:
        records = list(read_records(path))
        seen |= {record.title for record in records}
        splits.append(Split.of(records, width, encoder, apart, options.seed))
        if splits[-1].tokens < width:
            raise InputError(
                f"{path} has {splits[-1].tokens} tokens to train on, less than one row of {width}; "
                f"give more text or a smaller --length"
            )
    if missing := apart.titles - seen:
        raise InputError(f"--held-out: no text has the title {sorted(missing)[0]!r}")
    return splits


def measured(splits: list[Split], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Some of the rows that are held out: tokens and weights (rows, text)."""
    held = [row for split in splits for row in split.held]
    if not held:
        raise InputError("nothing is held out; give more text, a larger --held-out, or titles")
    random.Random(seed).shuffle(held)
    return stack(rows.row(number) for rows, number in held[:HELD_ROWS])


def prepare(options: argparse.Namespace) -> Tuning:
    """A run that is ready to start, or to go on; raises InputError."""
    check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = LandmarkSettings(options.block_size, options.recent_blocks, options.sink_blocks, options.blocks_per_head)
    adaptation = adapt(options.base, settings, options.lora, options.seed)
    splits = load_files(options, Encoder(adaptation.tokenizer))
    held, counts = measured(splits, options.seed), [len(split.trained) for split in splits]
    shares = options.shares or [float(count) for count in counts]
    schedule = Schedule(
        steps=options.steps, batch=options.batch, accumulate=options.accumulate, rate=options.rate,
        crowd=options.crowd, bf16=options.bf16, muon=options.muon, report=options.report,
    )  # fmt: skip
    print(f"{sum(counts):,} rows of {options.length} slots to train on, {len(held[0])} to measure", flush=True)
    feed = Feed([(split.rows, split.trained) for split in splits], shares, options.seed)
    return Tuning(run_folder(options), adaptation, feed, held, schedule, origin(options, counts))


def origin(options: argparse.Namespace, counts: list[int]) -> dict[str, Any]:
    """What a run was started with and must go on with."""
    free = {"output", "run", "steps", "minutes", "report", "threads", "data"}
    fixed = {name: value for name, value in vars(options).items() if name not in free}
    return fixed | {"data": [path.name for path in options.data], "rows": counts}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        tuning = prepare(options)
        tuning.train(options.minutes)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tuning.adaptation.save(options.output)
    told = {"plain": "full attention", "untrained": "untrained landmarks", "trained": "trained landmarks"}
    print("held-out loss:", ", ".join(f"{loss} with {told[name]}" for name, loss in tuning.losses.items()))
    if tuning.step < options.steps:
        print(f"{tuning.step} of {options.steps} steps are done; start it again to go on")
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
