"""`python -m bench.prefill --shape llama-1b --depths 0,8192,131072`: tokens per second of reading, against the depth.

One process, one set of weights: Cairn's retrieval attention, and transformers' with sdpa and a DynamicCache. Caches are
filled with random keys and values up to the depth; then chunks of tokens go through the model, at all depths in turns.
Beside it stands the machine's own rate for products of matrices, and what share of it a chunk's linear layers reach.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from bench.noise import Cairn, filled_cache
from bench.report import write_json
from bench.shapes import add_model, beside, made, served
from bench.turns import ratio, take_turns
from engine import EngineConfig, LoadedModel
from engine.many_rows import native
from engine.rounded import RoundedLinear, matrix_of


@dataclass(frozen=True)
class Row:
    """One depth; rates are tokens per second, of the median chunk."""

    depth: int
    cairn: float
    of_first: float
    """Share of the rate at the first depth that is left."""
    transformers: float | None
    matrix_share: float


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Of `repeats` calls after one that warms up."""
    seconds = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def machine_rate() -> float:
    """Multiplications per second in a product of large matrices, of fp32 or of bf16, whichever are more.

    Without instructions for bf16 torch would take minutes to show that it is fp32.
    """
    types = [torch.float32, torch.bfloat16] if native(torch.bfloat16) else [torch.float32]
    return max(map(product_rate, types))


def product_rate(dtype: torch.dtype) -> float:
    """Multiplications per second in a product of large matrices of this type."""
    left, right = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    return 2048**3 / median_seconds(lambda: left @ right, 5)


def multiplications(model: PreTrainedModel) -> int:
    """Of all linear layers, for one token; the output layer is asked for the last token only."""
    kinds = nn.Linear, RoundedLinear
    layers = [m for name, m in model.named_modules() if isinstance(m, kinds) and "lm_head" not in name]
    return sum(matrix_of(layer).numel() for layer in layers)


class Reader:
    """Reads one chunk after the other behind `depth` tokens."""

    def __init__(self, model: LoadedModel, depth: int, chunk: int, chunks: int) -> None:
        self._cairn, self._chunk = Cairn(model, EngineConfig(), depth, chunk * chunks + 1), chunk

    def read(self) -> float:
        """Seconds of a chunk."""
        return self._cairn.step(self._chunk)


def transformers_seconds(model: PreTrainedModel, depth: int, chunk: int) -> float:
    """Of one chunk behind `depth` tokens, once: at depth it takes minutes."""
    cache = filled_cache(model, depth) if depth else None
    begun = time.perf_counter()
    model(input_ids=torch.full((1, chunk), 7), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - begun


def show(row: Row) -> None:
    """A line of the table."""
    times = f"{row.cairn / row.transformers:.1f}x" if row.transformers else "-"
    theirs = f"{row.transformers:.1f}" if row.transformers else "-"
    mine = f"{row.depth:>9}{row.cairn:>13.1f}{row.of_first:>10.2f}"
    print(f"{mine}{theirs:>14}{times:>8}{row.matrix_share:>13.0%}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--depths", default="0,8192,131072")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cairn-only", action="store_true", help="do not run transformers beside it")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    if options.weights != "auto" and not options.cairn_only:
        parser.error("--weights: transformers would run with Cairn's products; add --cairn-only")
    model = made(options.shape)
    rate, work = machine_rate(), multiplications(model)
    twin = None if options.cairn_only else beside(model)
    loaded, depths = served(model, options.weights), [int(depth) for depth in options.depths.split(",")]
    readers = [Reader(loaded, depth, options.chunk, options.repeats + 1) for depth in depths]
    take_turns([reader.read for reader in readers], 1)  # warms up
    seconds = take_turns([reader.read for reader in readers], options.repeats)
    del readers
    gc.collect()
    print(f"{'depth':>9}{'cairn tok/s':>13}{'of first':>10}{'transformers':>14}{'ratio':>8}{'matrix work':>13}")
    rows = []
    for depth, mine in zip(depths, seconds, strict=True):
        theirs = twin and options.chunk / transformers_seconds(twin, depth, options.chunk)
        gc.collect()
        cairn = options.chunk / statistics.median(mine)
        rows.append(Row(depth, cairn, ratio(seconds[0], mine), theirs, cairn * work / rate))
        show(rows[-1])
    told = {"shape": options.shape, "weights": options.weights, "chunk": options.chunk}
    write_json(options.json, {**told, "rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
