"""`python -m bench.limit --contexts 4096,131072`: how near a decoded token is to what the memory allows.

A token at batch 1 must read every weight once, the index of its session, and the blocks that it fetches. What these
bytes take at the rate at which this machine reads memory is the floor.

That rate is no constant: on a machine that others share it moves by half within seconds. So tokens and sweeps take
turns, and a sweep reads what a token reads most of, the weights themselves where they lie (`bench.reading`). The floor
of a token follows from the sweep before it and the one after it, and the ratio is the median over tokens of each one's
time to its own floor; beside it stand the quartiles. A sweep also leaves the caches as a token does: full of weights.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.noise import Cairn
from bench.reading import Sweep
from bench.report import write_json
from bench.shapes import add_model, made, served
from bench.turns import around, take_turns
from cache import PAIR, SECTION, BlockIndex
from engine import EngineConfig, LoadedModel, RetrievalSettings
from engine.rounded import RoundedLinear

WARM = 2
"""Tokens before measuring begins."""


@dataclass(frozen=True)
class Row:
    """One context: bytes of a token by what they are; medians of tokens, floors and rates, and of their ratios."""

    context: int
    weight_bytes: int
    index_bytes: int
    block_bytes: int
    read_gb_per_second: float
    floor_ms: float
    ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]


def weight_bytes(model: LoadedModel) -> int:
    """Every weight as it is kept, but of the table of token vectors one row; if it is the last matrix, too, all."""
    table = model.model.get_input_embeddings()
    others = {id(weight) for module in model.model.modules() if module is not table for weight in own(module)}
    alone = sum(weight.nbytes for weight in own(table) if id(weight) not in others)
    kept = {id(weight): weight.nbytes for module in model.model.modules() for weight in own(module)}
    return sum(kept.values()) - alone


def own(module: nn.Module) -> list[Tensor]:
    """A module's weights, and the scales of those in 8 bits."""
    scales = [module.scales] if isinstance(module, RoundedLinear) else []
    return [*module.parameters(recurse=False), *scales]


def cache_bytes(cairn: Cairn) -> tuple[int, int]:
    """Bytes of the index, and of the blocks that a token reads, over all layers."""
    layout, settings = cairn.layout, cairn.settings
    indexes = [index for index in cairn.session.indexes if index is not None]
    read = settings.recent_blocks + 1 + settings.sink_blocks + settings.blocks_per_head
    blocks = min(read, len(cairn.session.blocks))
    return round(sum(index.count * looked_at(index, settings) for index in indexes)), blocks * layout.block_bytes


def looked_at(index: BlockIndex, settings: RetrievalSettings) -> float:
    """Bytes that a token reads of a block's summary: behind many blocks its part of its pair's and of its section's.

    Means, slopes and sizes of opened pairs come on top, and the directions of all: less than 150 KB for each head.
    """
    if index.pairs is None or index.sections is None or index.count <= (settings.few_blocks or 0):
        return index.block_bytes
    return index.pairs.block_bytes / PAIR + index.sections.block_bytes / SECTION


def in_turns(cairn: Cairn, sweep: Sweep, tokens: int) -> tuple[list[float], list[float]]:
    """Seconds of each token, and those that a sweep takes beside it: the mean of the one before and the one after."""
    take_turns([cairn.decode, sweep.seconds], WARM)
    first = sweep.seconds()
    decoded, after = take_turns([cairn.decode, sweep.seconds], tokens)
    return decoded, around([first, *after])


def measure(model: LoadedModel, context: int, tokens: int) -> Row:
    """Tokens of one context, each beside its floor."""
    cairn = Cairn(model, EngineConfig(), context, tokens + WARM)
    sweep = Sweep(model.model.parameters())
    decoded, sweeps = in_turns(cairn, sweep, tokens)
    index, blocks = cache_bytes(cairn)
    weights = weight_bytes(model)
    del cairn
    gc.collect()
    floors = [(weights + index + blocks) / sweep.bytes * seconds for seconds in sweeps]
    low, ratio, high = statistics.quantiles([mine / floor for mine, floor in zip(decoded, floors, strict=True)], n=4)
    rate = sweep.bytes / statistics.median(sweeps) / 1e9
    floor, ms = (1000 * statistics.median(each) for each in (floors, decoded))
    return Row(context, weights, index, blocks, rate, floor, ms, ratio, (low, high))


def show(row: Row) -> None:
    """A line of the table."""
    sizes = (f"{size / 1e6:.0f} MB" for size in (row.weight_bytes, row.index_bytes, row.block_bytes))
    quartiles = "{:.2f}-{:.2f}".format(*row.ratio_quartiles)
    parts = (row.context, f"{row.ratio:.2f}x", quartiles, f"{row.ms:.1f}", f"{row.floor_ms:.1f}", *sizes)
    print("".join(f"{part:>10}" for part in parts) + f"{row.read_gb_per_second:>10.1f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--contexts", default="4096,131072", help="context lengths, separated by commas")
    parser.add_argument("--tokens", type=int, default=24, help="decoded tokens per context")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    model = served(made(options.shape), options.weights)
    rows = []
    print("".join(f"{name:>10}" for name in ("context", "ratio", "quartiles", "ms", "floor")), end="")
    print("".join(f"{name:>10}" for name in ("weights", "index", "blocks", "GB/s")))
    for context in map(int, options.contexts.split(",")):
        row = measure(model, context, options.tokens)
        rows.append(asdict(row))
        show(row)
    write_json(options.json, {"shape": options.shape, "weights": options.weights, "rows": rows})
    return 0


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
