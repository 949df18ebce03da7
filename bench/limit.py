"""`python -m bench.limit --contexts 4096,131072`: how near a decoded token is to what the memory allows.

A token at batch 1 must read every weight once, the index of its session, and the blocks that it fetches. What these
bytes take at the rate at which this machine reads memory is the floor; the rate is measured beside the tokens, in the
same run, as the best of several sweeps over memory that no cache holds.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.decode import SHAPES, Cairn
from bench.report import write_json
from cache import zeros
from engine import EngineConfig, LoadedModel
from engine.huggingface import describe, register

SWEEP_BYTES = 1 << 30


@dataclass(frozen=True)
class Row:
    """One context: bytes of a token by what they are, the floor and the measured median."""

    context: int
    weight_bytes: int
    index_bytes: int
    block_bytes: int
    read_gb_per_second: float
    floor_ms: float
    ms: float
    ratio: float


def weight_bytes(model: LoadedModel) -> int:
    """Every weight, but of the table of token vectors one row; if it is the last matrix, too, it is read as such."""
    table = model.model.get_input_embeddings().weight
    output = model.model.get_output_embeddings().weight
    all_bytes = sum(weight.numel() * weight.element_size() for weight in model.model.parameters())
    tied = output.data_ptr() == table.data_ptr()
    return all_bytes if tied else all_bytes - table.numel() * table.element_size()


def cache_bytes(cairn: Cairn) -> tuple[int, int]:
    """Bytes of the index, and of the blocks that a token reads, over all layers."""
    layout, settings = cairn.layout, cairn.settings
    indexes = [index for index in cairn.session.indexes if index is not None]
    read = settings.recent_blocks + 1 + settings.sink_blocks + settings.blocks_per_head
    blocks = min(read, len(cairn.session.blocks))
    return sum(index.count * index.block_bytes for index in indexes), blocks * layout.block_bytes


def read_rate(sweeps: int = 5) -> float:
    """Bytes per second of the fastest sweep of all threads over memory, in large pages if there are any."""
    memory = zeros((SWEEP_BYTES // 4,), torch.int32).fill_(1)
    seconds = []
    for _ in range(sweeps):
        begun = time.perf_counter()
        memory.max()
        seconds.append(time.perf_counter() - begun)
    return SWEEP_BYTES / min(seconds)


def measure(model: LoadedModel, context: int, tokens: int) -> Row:
    """The floor, measured before and after the tokens, and the tokens."""
    before = read_rate()
    cairn = Cairn(model, EngineConfig(), context, tokens + 2)
    ms = 1000 * statistics.median([cairn.decode() for _ in range(tokens + 2)][2:])
    index, blocks = cache_bytes(cairn)
    weights = weight_bytes(model)
    cairn.restore()
    del cairn
    gc.collect()
    rate = max(before, read_rate())
    floor = 1000 * (weights + index + blocks) / rate
    return Row(context, weights, index, blocks, rate / 1e9, floor, ms, ms / floor)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-1b")
    parser.add_argument("--contexts", default="4096,131072", help="context lengths, separated by commas")
    parser.add_argument("--tokens", type=int, default=24, help="decoded tokens per context")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    register()
    model = describe("bench", SHAPES[options.shape]())
    rows = []
    print(f"{'context':>9}{'ratio':>7}{'ms':>8}{'floor':>8}{'weights':>10}{'index':>9}{'blocks':>9}{'GB/s':>7}")
    for context in map(int, options.contexts.split(",")):
        row = measure(model, context, options.tokens)
        rows.append(asdict(row))
        sizes = [f"{bytes_ / 1e6:.0f} MB" for bytes_ in (row.weight_bytes, row.index_bytes, row.block_bytes)]
        print(
            f"{context:>9}{row.ratio:>6.2f}x{row.ms:>8.1f}{row.floor_ms:>8.1f}{sizes[0]:>10}{sizes[1]:>9}{sizes[2]:>9}"
            f"{row.read_gb_per_second:>7.1f}",
            flush=True,
        )
    write_json(options.json, {"shape": options.shape, "rows": rows})
    return 0


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
