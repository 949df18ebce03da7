"""Random models of a few thousand parameters, and a bench that runs them span by span without the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from cache import BlockStore, DeviceTier, Session
from engine import EngineConfig, FusedAttention, ModelRunner, ReferenceAttention, Span, Step, load_model, summary_widths
from engine.step import with_landmarks

VOCABULARY = 128
LANDMARK = 5
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 40},
    "gemma3_text": {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "phi3": {},
    "gemma2": {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    "gpt_neox": {"num_key_value_heads": 4},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 0, 1], "layer_types": ["full_attention"] * 3},
    "granite": {},
}


def save_model(family: str, folder: Path, *, landmarks: bool = False, **changes: Any) -> Path:
    """Write a random model of a family; with `landmarks` its config tells trained ones."""
    torch.manual_seed(7)
    settings = {**SIZES, **FAMILIES[family], **changes}
    if landmarks:
        settings |= {"num_key_value_heads": 4}
    config = AutoConfig.for_model(family, **settings)
    if landmarks:
        geometry = {"block_size": 8, "recent_blocks": 2, "sink_blocks": 1, "blocks_per_head": 3}
        config.landmarks = {"token_id": LANDMARK, **geometry}
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the usual start, so that attention is far from uniform
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    return folder


def random_tokens(count: int, seed: int = 0) -> list[int]:
    """Text tokens, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(6, VOCABULARY, (count,), generator=generator).tolist()


class Bench:
    """A model on a cache of its own, driven span by span.

    Args:
        folder: of the model
        fused: attend with the CPU kernels instead of the reference
        config: how the cache is set up
    """

    def __init__(self, folder: Path, *, fused: bool = False, **config: Any) -> None:
        settings = EngineConfig(kv_bytes=32 << 20, dtype="float32", **config)
        self.model = load_model(str(folder), "float32")
        self.layout = settings.layout(self.model)
        self.settings = settings.retrieval(self.model)
        self.store = BlockStore(DeviceTier(self.layout, 32 << 20))
        attention = FusedAttention if fused else ReferenceAttention
        self.runner = ModelRunner(self.model, attention(self.model.layers, self.layout, self.settings))
        self.landmark = self.model.landmarks.token_id if self.model.landmarks else None

    def session(self, name: str = "session") -> Session:
        return Session(name, self.store, summary_widths(self.model, self.settings))

    def span(self, session: Session, end: int, fetch: int | None) -> Span:
        """The session's next text tokens up to `end`."""
        start = session.computed
        session.reserve(end)
        tokens = with_landmarks(session.tokens[start:end].tolist(), start, self.landmark, self.layout)
        return Span(session, start, end, tokens, fetch)

    def logits(self, session: Session, tokens: list[int], cuts: list[int], fetch: int | None) -> Tensor:
        """Logits (text tokens, vocabulary) that predict each next text token, computed in pieces of `cuts`."""
        session.append(tokens)
        pieces = []
        for cut in cuts:
            span = self.span(session, session.computed + cut, fetch)
            rows = self.runner.run(Step([span]))
            pieces.append(rows[self.predicting(span)])
        return torch.cat(pieces)

    def predicting(self, span: Span) -> list[int]:
        """Rows of a span that predict text: a landmark stands in for the text token before it."""
        ids = span.token_ids
        return [i for i, _ in enumerate(ids) if i + 1 == len(ids) or ids[i + 1] != self.landmark]
