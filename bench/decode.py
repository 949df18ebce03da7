"""`python -m bench.decode --shape llama-1b --contexts 4096,131072`: milliseconds per decoded token against the context.

One process, one set of weights: Cairn's retrieval attention, and transformers' own `generate` with sdpa and a
DynamicCache. The caches are filled with random keys and values instead of reading a text, which changes no cost.
Memory is what the keys and values take, and the growth of the process while each side decodes.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bench.report import write_json
from cache import BlockStore, DeviceTier, Session
from engine import EngineConfig, LoadedModel, ModelRunner, Span, Step, choose_attention, index_shapes
from engine.huggingface import describe, register
from engine.layers import quicken_layers
from engine.linear import quicken
from engine.placing import settle
from engine.rounded import round_weights
from engine.step import with_landmarks

OURS = Path("models/cairn-4m")
FILL = 4096
"""Positions that are written at once while a cache is filled."""


@dataclass(frozen=True)
class Row:
    """One context length; milliseconds are medians over the decoded tokens."""

    context: int
    cairn_ms: float
    transformers_ms: float | None
    ratio: float | None
    cairn_kv_bytes: int
    transformers_kv_bytes: int
    cairn_peak_bytes: int
    transformers_peak_bytes: int | None


def llama_1b() -> PreTrainedModel:
    """Random weights in the shape of Llama-3.2-1B, bf16."""
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131_072 + 64,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    return random_weights(LlamaForCausalLM, config)


def qwen3_600m() -> PreTrainedModel:
    """Random weights in the shape of Qwen3-0.6B, bf16."""
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131_072 + 64,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    return random_weights(Qwen3ForCausalLM, config)


def random_weights(kind: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A model of this shape, made in bf16, because an fp32 one would take twice the memory."""
    torch.set_default_dtype(torch.bfloat16)
    model = kind(config)
    torch.set_default_dtype(torch.float32)
    return model.eval()


def ours() -> PreTrainedModel:
    """The model that we ship."""
    return AutoModelForCausalLM.from_pretrained(OURS, dtype="auto").eval()


SHAPES = {"llama-1b": llama_1b, "qwen3-0.6b": qwen3_600m, "cairn-4m": ours}


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options that say which model."""
    parser.add_argument("--shape", choices=SHAPES, default="llama-1b")
    parser.add_argument("--weights", choices=("auto", "int8"), default="auto", help="as `cairn serve` takes it")


def made(shape: str, weights: str = "auto") -> PreTrainedModel:
    """A model of this shape, its weights kept and placed as if it were loaded."""
    model = SHAPES[shape]()
    if weights == "int8":
        round_weights(model)
    settle(model)
    return model


class Cairn:
    """One session of `context` text tokens, filled with noise."""

    def __init__(self, model: LoadedModel, config: EngineConfig, context: int, tokens: int) -> None:
        self._restore = [quicken(model.model), quicken_layers(model.model, model.kv_heads, model.head_dim)]
        self.layout, self.settings = config.layout(model), config.retrieval(model)
        needed = self.layout.blocks(context + tokens + 1) * self.layout.block_bytes
        self.store = BlockStore(DeviceTier(self.layout, needed))
        self.attention = choose_attention(model, self.settings, self.layout)
        self.runner = ModelRunner(model, self.attention)
        self.landmark = model.landmarks.token_id if model.landmarks else None
        self.session = Session("bench", self.store, index_shapes(model, self.settings, self.layout))
        self.session.append([7] * (context + tokens))
        self.session.reserve(context + tokens)
        self._fill(context)

    def restore(self) -> None:
        """Leave the model as transformers has it."""
        for undo in self._restore:
            undo()

    def span(self, start: int, end: int) -> Span:
        text = self.session.tokens[start:end].tolist()
        ids = with_landmarks(text, start, self.landmark, self.layout)
        return Span(self.session, start, end, ids, self.settings.blocks_per_head)

    def _fill(self, context: int) -> None:
        """Write random keys and values through the ordinary path, so that the index is real too."""
        for start in range(0, context, FILL):
            span = self.span(start, min(start + FILL, context))
            shape = (len(span.token_ids), self.layout.kv_heads, self.layout.head_dim)
            for layer in range(self.layout.layers):
                self.attention.store(layer, span, torch.randn(shape), torch.randn(shape))
            self.session.advance(span.end)

    def decode(self) -> float:
        """Seconds of one token."""
        return self.step(1)

    def step(self, tokens: int) -> float:
        """Seconds of a step that computes the next `tokens` text tokens."""
        begun = time.perf_counter()
        start = self.session.computed
        span = self.span(start, start + tokens)
        self.runner.run(Step([span]), [len(span.token_ids) - 1]).argmax(-1)
        return time.perf_counter() - begun


def filled_cache(model: PreTrainedModel, context: int) -> DynamicCache:
    """transformers' cache with `context` random keys and values."""
    config = model.config
    cache, shape = DynamicCache(config=config), (1, config.num_key_value_heads, context, config.head_dim)
    for layer in range(config.num_hidden_layers):
        cache.update(torch.randn(shape, dtype=model.dtype), torch.randn(shape, dtype=model.dtype), layer)
    return cache


def transformers_seconds(model: PreTrainedModel, context: int, tokens: int) -> list[float]:
    """Seconds of each token that `generate` makes after the first two."""
    stamps: list[float] = []
    ids = torch.full((1, context + 1), 7)

    class Clock:
        def put(self, value: torch.Tensor) -> None:
            stamps.append(time.perf_counter())

        def end(self) -> None: ...

    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=filled_cache(model, context),
        max_new_tokens=tokens + 2,
        min_new_tokens=tokens + 2,
        do_sample=False,
        pad_token_id=0,
        streamer=Clock(),
    )
    # The first stamp is the prompt, the second the first token, which also pays for warming up.
    return [after - before for before, after in itertools.pairwise(stamps[1:])][-tokens:]


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(model: PreTrainedModel, context: int, tokens: int, *, compare: bool) -> Row:
    """Both sides at one context; Cairn first, because the process's peak only grows."""
    config = EngineConfig()
    loaded = describe("bench", model)
    cairn = Cairn(loaded, config, context, tokens + 2)
    seconds = [cairn.decode() for _ in range(tokens + 2)][2:]
    cairn_bytes = len(cairn.session.blocks) * cairn.layout.block_bytes
    cairn_peak = peak_bytes()
    cairn.restore()
    del cairn
    gc.collect()
    mine = 1000 * statistics.median(seconds)
    theirs = None
    if compare:
        model.set_attn_implementation("sdpa")
        theirs = 1000 * statistics.median(transformers_seconds(model, context, max(2, tokens // 4)))
        gc.collect()
    kv_bytes = 2 * loaded.kv_heads * loaded.head_dim * len(loaded.layers) * context * loaded.dtype.itemsize
    return Row(
        context,
        round(mine, 2),
        theirs and round(theirs, 2),
        theirs and round(theirs / mine, 1),
        cairn_bytes,
        kv_bytes,
        cairn_peak,
        peak_bytes() if compare else None,
    )


def show(shape: str, rows: list[Row]) -> None:
    print(f"\n{shape}, ms per token\n{'context':>9}{'cairn':>10}{'transformers':>14}{'ratio':>8}{'cairn KV':>12}")
    for row in rows:
        theirs = "-" if row.transformers_ms is None else f"{row.transformers_ms:.1f}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.1f}x"
        print(f"{row.context:>9}{row.cairn_ms:>10.1f}{theirs:>14}{ratio:>8}{row.cairn_kv_bytes / 2**20:>9.0f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--contexts", default="4096,16384,65536,131072")
    parser.add_argument("--tokens", type=int, default=16, help="tokens to decode at each context")
    parser.add_argument("--cairn-only", action="store_true", help="do not run transformers beside it")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    if options.weights != "auto" and not options.cairn_only:
        parser.error("--weights: transformers would run with Cairn's products; add --cairn-only")
    register()
    model = made(options.shape, options.weights)
    contexts = [int(context) for context in options.contexts.split(",")]
    rows = []
    for context in contexts:
        rows.append(measure(model, context, options.tokens, compare=not options.cairn_only))
        print(rows[-1], flush=True)
    show(options.shape, rows)
    write_json(
        options.json, {"shape": options.shape, "weights": options.weights, "rows": [asdict(row) for row in rows]}
    )
    return 0


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
