"""`python -m bench.prefill --shape llama-1b --depths 0,8192,131072`: tokens per second of reading, against the depth.

One process, one set of weights: Cairn's retrieval attention, and transformers' with sdpa and a DynamicCache. Caches are
filled with random keys and values up to the depth; then a chunk of tokens goes through the model. Beside it stands the
machine's own rate for products of matrices, and what share of it the chunk's linear layers reach.
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

from bench.decode import Cairn, add_model, filled_cache, made
from bench.report import write_json
from engine import EngineConfig, Step
from engine.huggingface import describe, register
from engine.rounded import RoundedLinear, matrix_of


@dataclass(frozen=True)
class Row:
    """One depth; rates are tokens per second, of the median chunk."""

    depth: int
    cairn: float
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
    """Multiplications per second in a product of large matrices, of fp32 or of bf16, whichever are more."""
    return max(product_rate(torch.float32), product_rate(torch.bfloat16))


def product_rate(dtype: torch.dtype) -> float:
    """Multiplications per second in a product of large matrices of this type."""
    left, right = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    return 2048**3 / median_seconds(lambda: left @ right, 5)


def multiplications(model: PreTrainedModel) -> int:
    """Of all linear layers, for one token; the output layer is asked for the last token only."""
    kinds = nn.Linear, RoundedLinear
    layers = [m for name, m in model.named_modules() if isinstance(m, kinds) and "lm_head" not in name]
    return sum(matrix_of(layer).numel() for layer in layers)


def cairn_seconds(model: PreTrainedModel, depth: int, chunk: int, repeats: int) -> float:
    """Of one chunk behind `depth` tokens."""
    cairn = Cairn(describe("bench", model), EngineConfig(), depth, chunk * (repeats + 1) + 1)

    def read() -> None:
        start = cairn.session.computed
        cairn.runner.run(Step([cairn.span(start, start + chunk)]), [chunk - 1])

    seconds = median_seconds(read, repeats)
    cairn.restore()
    return seconds


def transformers_seconds(model: PreTrainedModel, depth: int, chunk: int) -> float:
    """Of one chunk behind `depth` tokens, once: at depth it takes minutes."""
    model.set_attn_implementation("sdpa")
    cache = filled_cache(model, depth) if depth else None
    begun = time.perf_counter()
    model(input_ids=torch.full((1, chunk), 7), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - begun


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
    register()
    model = made(options.shape, options.weights)
    rate, work = machine_rate(), multiplications(model)
    print(f"{'depth':>9}{'cairn tok/s':>13}{'transformers':>14}{'ratio':>8}{'matrix work':>13}")
    rows = []
    for depth in (int(depth) for depth in options.depths.split(",")):
        mine = options.chunk / cairn_seconds(model, depth, options.chunk, options.repeats)
        gc.collect()
        theirs = None if options.cairn_only else options.chunk / transformers_seconds(model, depth, options.chunk)
        gc.collect()
        row = Row(depth, mine, theirs, mine * work / rate)
        ratio = f"{mine / theirs:.1f}x" if theirs else "-"
        shown = f"{theirs:.1f}" if theirs else "-"
        print(f"{depth:>9}{mine:>13.1f}{shown:>14}{ratio:>8}{row.matrix_share:>13.0%}", flush=True)
        rows.append(row)
    told = {"shape": options.shape, "weights": options.weights, "chunk": options.chunk}
    write_json(options.json, {**told, "rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
