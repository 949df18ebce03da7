"""Hugging Face models: load one, learn its geometry, and run it with our attention.

The model is called with position 0 for every token, so its own rotary code becomes the identity and the
registered attention function receives unrotated queries and keys. Nothing of transformers is patched. It is imported
when a model is loaded: that takes seconds, which nobody waits for who only wants to know what a server would do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cache import CacheLayout
from engine import rehearsal
from engine.attention import Attention, LayerGeometry
from engine.errors import ModelError
from engine.experts import quicken_experts, round_experts
from engine.families import check_supported, text_config
from engine.layers import quicken_layers
from engine.linear import quicken
from engine.placing import settle
from engine.rehearsal import REHEARSAL, RehearsedLayer
from engine.rounded import round_weights
from engine.step import Step

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ATTENTION = "cairn"
TEXT_WITHIN = {r"^language_model\.model\.": "model.", r"^model\.(language_model|text_model)\.": "model.",
               r"^language_model\.lm_head\.": "lm_head."}  # fmt: skip
"""What weights are called in a model that takes images as well, and what in its text model alone."""


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
    def device(self) -> torch.device:
        """Where it runs, and what it computes lies."""
        device = self.model.device
        assert isinstance(device, torch.device)
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype = self.model.dtype
        assert isinstance(dtype, torch.dtype)
        return dtype

    def layout(self, block_size: int) -> CacheLayout:
        """The cache's shapes for this model."""
        reserved = 1 if self.landmarks else 0
        return CacheLayout(len(self.layers), self.kv_heads, self.head_dim, block_size, self.dtype, reserved)


def load_model(
    name: str, dtype: str = "auto", device: torch.device | None = None, weights: str = "auto"
) -> LoadedModel:
    """Load a causal language model from a folder or the hub; raises ModelError.

    Args:
        device: where it is to run; None is the CPU
        weights: how linear layers and experts keep them: `auto` as they are, `int8` in 8 bits, on a CPU only
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    config = load_config(name)
    register()
    logging.disable_progress_bar()  # a server's log has lines, not bars
    logging.set_verbosity_error()  # what of an image's model is left out is no news, and what is missing is told below
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            attn_implementation=REHEARSAL,
            use_safetensors=True,
            key_mapping=TEXT_WITHIN,
            output_loading_info=True,
        )
    except Exception as error:  # whatever transformers, safetensors or the hub raise
        raise ModelError(f"{name}: the weights cannot be loaded: {error}") from error
    if missing := sorted(info["missing_keys"]):  # transformers would fill them with random numbers
        raise ModelError(
            f"{name}: the weights lack {len(missing)} tensors, among them {missing[0]}; download them again"
        )
    if device is not None:
        model.to(device)
    return prepared(name, model.eval(), weights)


def prepared(name: str, model: PreTrainedModel, weights: str = "auto") -> LoadedModel:
    """A model as it runs: weights where they are read fast, facts known, usual parts faster; raises ModelError.

    Args:
        weights: as `load_model`
    """
    if weights == "int8":
        round_weights(model)
        round_experts(model)
    settle(model)
    loaded = describe(name, model)
    quicken(model)
    quicken_experts(model)
    quicken_layers(model, loaded.kv_heads, loaded.head_dim)
    return loaded


def register() -> None:
    """Make our attention known to transformers under `ATTENTION`, and the one that looks at a model first."""
    from transformers import AttentionInterface

    rehearsal.register()
    AttentionInterface.register(ATTENTION, attention_function)


def load_config(name: str) -> PretrainedConfig:
    """The model's config, if we can serve such a model; raises ModelError."""
    from transformers import AutoConfig

    folder = Path(name).expanduser()
    if not folder.exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise ModelError(
            f"{name}: there is no such folder; give a folder with config.json, or a hub name (owner/model)"
        )
    if folder.is_dir() and not (folder / "config.json").exists():
        raise ModelError(f"{name}: the folder has no config.json, so it is not a transformers model")
    try:
        config = text_config(AutoConfig.from_pretrained(name))
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


def describe(name: str, model: PreTrainedModel) -> LoadedModel:
    """Learn a model's facts from its config and from a rehearsal; raises ModelError."""
    config = model.config
    model.set_attn_implementation(REHEARSAL)
    try:
        rehearsed = rehearsal.rehearse(model)
        kv_heads, head_dim = largest_shape(rehearsed)
    except ModelError as error:
        raise ModelError(f"{name}: this {config.model_type!r} model cannot be served: {error}") from error
    model.set_attn_implementation(ATTENTION)
    eos = getattr(model.generation_config, "eos_token_id", None)
    eos = config.eos_token_id if eos is None else eos
    return LoadedModel(
        name=name,
        model=model,
        layers=[LayerGeometry(layer.rotation, layer.window, layer.void, layer.temperature) for layer in rehearsed],
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        eos_token_ids=frozenset([] if eos is None else eos if isinstance(eos, list) else [eos]),
        max_positions=config.max_position_embeddings,
        landmarks=landmarks_of(name, config),
    )


def largest_shape(rehearsed: list[RehearsedLayer]) -> tuple[int, int]:
    """KV heads and channels of the cache, into which smaller layers fit; raises ModelError."""
    kv_heads = max(layer.kv_heads for layer in rehearsed)
    if odd := [layer.kv_heads for layer in rehearsed if kv_heads % layer.kv_heads]:
        raise ModelError(f"it has layers of {kv_heads} and of {odd[0]} KV heads, which do not fit together")
    return kv_heads, max(layer.head_dim for layer in rehearsed)


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
    """transformers' attention function: query (1, heads, positions, channels), key and value with KV heads."""
    layer = module.layer_idx
    assert isinstance(layer, int)
    layout = cairn_step.spans[0].session.layout
    width, repeats = value.shape[-1], layout.kv_heads // key.shape[1]
    q, k, v = (widen(x[0].transpose(0, 1), layout.head_dim) for x in (query, key, value))
    if repeats > 1:  # a layer with fewer KV heads than others
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    return cairn_attention(layer, q, k, v, cairn_step, scaling, softcap)[None, ..., :width], None


def widen(x: Tensor, head_dim: int) -> Tensor:
    """x (positions, heads, channels) with zeros up to the cache's channels, which change no score: (…, head_dim)."""
    missing = head_dim - x.shape[-1]
    return functional.pad(x, (0, missing)) if missing else x
