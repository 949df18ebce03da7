"""The models that are measured: random weights in the shapes of known ones, and the model that we ship."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from engine import LoadedModel
from engine.huggingface import prepared, register

OURS = Path("models/cairn-4m")


def llama_1b(layers: int = 16) -> PreTrainedModel:
    """Random weights in the shape of Llama-3.2-1B, bf16."""
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
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


def qwen3_600m(layers: int = 28) -> PreTrainedModel:
    """Random weights in the shape of Qwen3-0.6B, bf16."""
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
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


def olmoe_quarter(layers: int = 4) -> PreTrainedModel:
    """Random weights in the shape of four of OLMoE-1B-7B's sixteen layers, bf16; each token takes 8 of 64 experts."""
    config = OlmoeConfig(
        vocab_size=50_304,
        hidden_size=2048,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        num_experts=64,
        num_experts_per_tok=8,
        head_dim=128,
        max_position_embeddings=131_072 + 64,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return random_weights(OlmoeForCausalLM, config)


def random_weights(kind: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A model of this shape, made in bf16, because an fp32 one would take twice the memory."""
    torch.set_default_dtype(torch.bfloat16)
    model = kind(config)
    torch.set_default_dtype(torch.float32)
    return model.eval()


def ours() -> PreTrainedModel:
    """The model that we ship."""
    return AutoModelForCausalLM.from_pretrained(OURS, dtype="auto").eval()


SHAPES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama-1b": llama_1b,
    "qwen3-0.6b": qwen3_600m,
    "olmoe-quarter": olmoe_quarter,
    "cairn-4m": ours,
}


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options that say which model."""
    parser.add_argument("--shape", choices=SHAPES, default="llama-1b")
    parser.add_argument("--weights", choices=("auto", "int8"), default="auto", help="as `cairn serve` takes it")


def made(shape: str, layers: int | None = None) -> PreTrainedModel:
    """A model of this shape, as transformers makes or loads it, or of so many of its layers."""
    if layers is None:
        return SHAPES[shape]()
    if SHAPES[shape] is ours:
        raise SystemExit("--layers: the shipped model is measured as it is; choose another --shape")
    return SHAPES[shape](layers)


def beside(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, with the same weights in the same memory, as transformers runs it; made before it is `served`."""
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin: PreTrainedModel = copy.deepcopy(model, weights)
    twin.set_attn_implementation("sdpa")
    return twin


def served(model: PreTrainedModel, weights: str = "auto") -> LoadedModel:
    """The model as the server runs it."""
    register()
    return prepared("bench", model, weights)
