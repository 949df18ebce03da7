"""`python -m bench.decode --shape llama-1b --contexts 4096,131072`: milliseconds per decoded token against the context.

One process, one set of weights: Cairn's retrieval attention, and transformers' own `generate` with sdpa and a
DynamicCache, whose keys and values are noise.

Whatever is compared takes turns (`bench.turns`): some tokens in a row behind the first context and as many behind
another, then one of transformers, again and again. In a row, because the first one finds caches as others left them.
Ratios are medians over turns of each to what is beside it.
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
from transformers import PreTrainedModel

from bench.noise import Cairn, filled_cache
from bench.report import write_json
from bench.shapes import add_model, beside, made, served
from bench.turns import around, ratio, several, take_turns
from engine import EngineConfig, LoadedModel

WARM = 2
"""Tokens before measuring begins."""
TURN = 6
"""Tokens of Cairn in a row."""


@dataclass(frozen=True)
class Row:
    """One context length; milliseconds are medians over turns."""

    context: int
    cairn_ms: float
    to_first: float
    """A token's time to that of one behind the first context."""
    transformers_ms: float | None
    ratio: float | None
    """transformers' time to Cairn's."""
    cairn_kv_bytes: int
    transformers_kv_bytes: int


def transformers_seconds(
    model: PreTrainedModel, context: int, tokens: int, between: Callable[[], object]
) -> list[float]:
    """Seconds of each token that `generate` makes after the first two; before and after each `between` is called."""
    seconds: list[float] = []
    ids = torch.full((1, context + 1), 7)

    class Clock:
        """Takes the prompt, a token that also pays for it, one that warms up, and those that count."""

        begun, calls = 0.0, 0

        def put(self, value: torch.Tensor) -> None:
            if self.calls > WARM:
                seconds.append(time.perf_counter() - self.begun)
            if self.calls >= WARM:
                between()
            self.calls += 1
            self.begun = time.perf_counter()

        def end(self) -> None: ...

    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=filled_cache(model, context),
        max_new_tokens=tokens + WARM,
        min_new_tokens=tokens + WARM,
        do_sample=False,
        pad_token_id=0,
        streamer=Clock(),
    )
    return seconds


def cairn_at(model: LoadedModel, context: int, tokens: int) -> Cairn:
    """A session that has decoded its first tokens."""
    cairn = Cairn(model, EngineConfig(), context, tokens + WARM)
    for _ in range(WARM):
        cairn.decode()
    return cairn


def measure(first: Cairn, other: Cairn, twin: PreTrainedModel | None, context: int, turns: int) -> Row:
    """All sides at one context.

    Args:
        first: behind the first context
        other: behind `context`
        twin: transformers' side, if it is measured: a token between two turns
        turns: of Cairn, `TURN` tokens in a row behind each
    """
    rounds: list[list[list[float]]] = []  # (rounds, 2, turns)
    sides, theirs = [several(cairn.decode, TURN) for cairn in (first, other)], None
    if twin is None:
        rounds.append(take_turns(sides, turns))
    else:
        theirs = transformers_seconds(twin, context, turns - 1, lambda: rounds.append(take_turns(sides, 1)))
    its, mine = ([seconds for each in rounds for seconds in each[side]] for side in (0, 1))
    return Row(
        context,
        round(1000 * statistics.median(mine), 2),
        round(ratio(mine, its), 2),
        None if theirs is None else round(1000 * statistics.median(theirs), 2),
        None if theirs is None else round(ratio(theirs, around(mine)), 1),
        len(other.session.blocks) * other.layout.block_bytes,
        context * other.layout.block_bytes // other.layout.block_size,
    )


def show(shape: str, rows: list[Row]) -> None:
    header = f"{'context':>9}{'cairn':>10}{'to first':>10}{'transformers':>14}{'ratio':>8}{'cairn KV':>12}"
    print(f"\n{shape}, ms per token\n{header}")
    for row in rows:
        theirs = "-" if row.transformers_ms is None else f"{row.transformers_ms:.1f}"
        times = "-" if row.ratio is None else f"{row.ratio:.1f}x"
        mine = f"{row.context:>9}{row.cairn_ms:>10.1f}{row.to_first:>9.2f}x"
        print(f"{mine}{theirs:>14}{times:>8}{row.cairn_kv_bytes / 2**20:>9.0f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--contexts", default="4096,16384,65536,131072")
    parser.add_argument("--turns", type=int, default=6, help=f"{TURN} tokens each, at each context")
    parser.add_argument("--layers", type=int, help="only the first layers of the shape: long caches fit twice then")
    parser.add_argument("--cairn-only", action="store_true", help="do not run transformers beside it")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    if options.weights != "auto" and not options.cairn_only:
        parser.error("--weights: transformers would run with Cairn's products; add --cairn-only")
    model = made(options.shape, options.layers)
    twin = None if options.cairn_only else beside(model)
    loaded = served(model, options.weights)
    contexts = [int(context) for context in options.contexts.split(",")]
    first = cairn_at(loaded, contexts[0], options.turns * TURN * (len(contexts) + 1))
    rows = []
    for context in contexts:
        other = first if context == contexts[0] else cairn_at(loaded, context, options.turns * TURN)
        rows.append(measure(first, other, twin, context, options.turns))
        print(rows[-1], flush=True)
        del other
        gc.collect()
    show(options.shape if options.layers is None else f"{options.shape}, {options.layers} layers", rows)
    told = {"shape": options.shape, "layers": options.layers, "weights": options.weights}
    write_json(options.json, told | {"rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
