"""Hugging Face models: load one, learn its geometry, and run it with our attention.

The model is called with position 0 for every token, so its own rotary code becomes the identity and the
registered attention function receives unrotated queries and keys. Nothing of transformers is patched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from cache import CacheLayout
from engine.attention import Attention, LayerGeometry
from engine.errors import ModelError
from engine.rotation import Rotation
from engine.step import Step

ATTENTION = "cairn"
SUPPORTED = frozenset(
    "llama qwen2 qwen3 qwen3_moe mistral mixtral gemma2 gemma3_text phi phi3 gpt_neox olmo2 smollm3 granite".split()
)
"""Families whose logits were checked against full attention (tests/engine/test_families.py)."""
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary frequencies that do not depend on how long the text is."""


@dataclass(frozen=True)
class Landmarks:
    """What a trained model's config says: the landmark token, and the geometry that it was trained with."""

    token_id: int
    block_size: int
    recent_blocks: int
    sink_blocks: int
    blocks_per_head: int


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and the facts that the cache and attention need."""

    name: str
    model: PreTrainedModel
    layers: list[LayerGeometry]
    kv_heads: int
    head_dim: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    max_positions: int
    landmarks: Landmarks | None

    @property
    def dtype(self) -> torch.dtype:
        dtype = self.model.dtype
        assert isinstance(dtype, torch.dtype)
        return dtype

    def layout(self, block_size: int) -> CacheLayout:
        """The cache's shapes for this model."""
        reserved = 1 if self.landmarks else 0
        return CacheLayout(len(self.layers), self.kv_heads, self.head_dim, block_size, self.dtype, reserved)


def load_model(name: str, dtype: str = "auto") -> LoadedModel:
    """Load a causal language model from a folder or the hub; raises ModelError."""
    config = load_config(name)
    register()
    logging.disable_progress_bar()  # a server's log has lines, not bars
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever transformers, safetensors or the hub raise
        raise ModelError(f"{name}: the weights cannot be loaded: {error}") from error
    if missing := sorted(info["missing_keys"]):  # transformers would fill them with random numbers
        raise ModelError(
            f"{name}: the weights lack {len(missing)} tensors, among them {missing[0]}; download them again"
        )
    return describe(name, model.eval())


def register() -> None:
    """Make our attention known to transformers under `ATTENTION`."""
    AttentionInterface.register(ATTENTION, attention_function)


def load_config(name: str) -> PretrainedConfig:
    """The model's config, if we can serve such a model; raises ModelError."""
    folder = Path(name).expanduser()
    if not folder.exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise ModelError(
            f"{name}: there is no such folder; give a folder with config.json, or a hub name (owner/model)"
        )
    if folder.is_dir() and not (folder / "config.json").exists():
        raise ModelError(f"{name}: the folder has no config.json, so it is not a transformers model")
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # transformers checks few values, so a senseless one fails in many ways
        raise ModelError(f"{name}: its config cannot be read: {error}") from error
    check_supported(name, config)
    landmarks_of(name, config)
    return config


def landmarks_of(name: str, config: PretrainedConfig) -> Landmarks | None:
    """The trained landmarks that a config tells; raises ModelError if they make no sense."""
    kept = getattr(config, "landmarks", None)
    if kept is None:
        return None
    lowest = {"token_id": 0, "block_size": 2, "recent_blocks": 0, "sink_blocks": 0, "blocks_per_head": 0}
    whole = isinstance(kept, dict) and all(isinstance(value, int) for value in kept.values())
    if not whole or kept.keys() != lowest.keys() or any(kept[field] < low for field, low in lowest.items()):
        raise ModelError(f"{name}: `landmarks` in its config must give {', '.join(lowest)}, not {kept}")
    if kept["token_id"] >= config.vocab_size:
        raise ModelError(f"{name}: `landmarks` in its config names token {kept['token_id']}, beyond the vocabulary")
    return Landmarks(**kept)


def check_supported(name: str, config: PretrainedConfig) -> None:
    """Refuse by name what the engine does not compute faithfully."""
    if config.model_type not in SUPPORTED:
        families = ", ".join(sorted(SUPPORTED))
        raise ModelError(
            f"{name}: models of type {config.model_type!r} are not supported; Cairn serves decoder models "
            f"with rotary positions of these types: {families}"
        )
    for rope_type in rope_types(config):
        if rope_type not in ROPE_TYPES:
            supported = ", ".join(sorted(ROPE_TYPES))
            raise ModelError(
                f"{name}: rotary positions of type {rope_type!r} are not supported; Cairn computes {supported}"
            )


def rope_types(config: PretrainedConfig) -> set[str]:
    """Rotary types in a config; Gemma 3 has one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {p.get("rope_type", "default") for p in (nested or [parameters])}


def describe(name: str, model: PreTrainedModel) -> LoadedModel:
    """Learn a model's facts from its config and modules."""
    config = model.config
    heads = config.num_attention_heads
    eos = getattr(model.generation_config, "eos_token_id", None)
    eos = config.eos_token_id if eos is None else eos
    return LoadedModel(
        name=name,
        model=model,
        layers=geometries(model),
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        eos_token_ids=frozenset([] if eos is None else eos if isinstance(eos, list) else [eos]),
        max_positions=config.max_position_embeddings,
        landmarks=landmarks_of(name, config),
    )


def geometries(model: PreTrainedModel) -> list[LayerGeometry]:
    """Rotation and window of each layer."""
    config = model.config
    rotary = next((m for m in model.modules() if hasattr(m, "rope_type") and hasattr(m, "config")), None)
    if rotary is None:
        raise ModelError(f"{config.model_type}: the model has no rotary positions, which the cache needs")
    attentions = {m.layer_idx: m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "scaling")}
    layers = []
    for index in range(config.num_hidden_layers):
        kinds = getattr(config, "layer_types", None)
        kind = kinds[index] if kinds else None
        rotates = getattr(attentions.get(index), "use_rope", True)
        rotation = Rotation(frequencies(rotary, kind) if rotates else None)
        layers.append(LayerGeometry(rotation, sliding_window(config, kind)))
    return layers


def frequencies(rotary: nn.Module, kind: str | None) -> Tensor:
    """A layer's rotary frequencies (rotary_dim / 2,) float64."""
    own = getattr(rotary, f"{kind}_inv_freq", None)
    found = own if own is not None else rotary.inv_freq
    assert isinstance(found, Tensor)
    return found.detach().double()


def sliding_window(config: PretrainedConfig, kind: str | None) -> int | None:
    """Positions that a layer's queries see, or None for all."""
    if kind is not None:
        return config.sliding_window if kind == "sliding_attention" else None
    return getattr(config, "sliding_window", None)


def attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cairn_attention: Attention,
    cairn_step: Step,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (1, heads, positions, head_dim), key and value with kv_heads."""
    layer = module.layer_idx
    assert isinstance(layer, int)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (positions, heads, head_dim)
    return cairn_attention(layer, q, k, v, cairn_step, scaling, softcap)[None], None
