"""Random models of a few thousand parameters, and a bench that runs them span by span without the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from cache import BlockStore, DeviceTier, Session
from engine import EngineConfig, FusedAttention, ModelRunner, ReferenceAttention, Span, Step, index_shapes, load_model
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
SLIDING, FULL = "sliding_attention", "full_attention"
WINDOWS: dict[str, Any] = {"sliding_window": 24, "layer_types": [SLIDING, FULL, SLIDING]}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED: dict[str, Any] = {**EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LOCAL: dict[str, Any] = {**EXPERTS, "num_local_experts": 4}
SHARING: dict[str, Any] = {  # the last two layers take keys and values of earlier ones
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": [SLIDING, FULL] * 2,
    "sliding_window": 24,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 16,
}
UNEQUAL: dict[str, Any] = {"global_head_dim": 32, "num_key_value_heads": 4, "num_global_key_value_heads": 2}
UNEQUAL |= {"attention_k_eq_v": True}
TEMPERATE: dict[str, Any] = {  # queries are larger from position 48 on
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                        "original_max_position_embeddings": 48, "llama_4_scaling_beta": 0.5,
                        "mscale": 1.0, "mscale_all_dim": 1.0},
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 40},
    "gemma3_text": WINDOWS,
    "phi3": {},
    "gemma2": WINDOWS,
    "qwen3_moe": EXPERTS,
    "mixtral": LOCAL,
    "phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 4, "qk_layernorm": True},
    "gpt_neox": {"num_key_value_heads": 4},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 0, 1], "layer_types": [FULL] * 3},
    "granite": {"attention_multiplier": 0.3, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "afmoe": {**EXPERTS, **WINDOWS, "num_dense_layers": 1},
    "apertus": {},
    "arcee": {},
    "bitnet": {},
    "cohere": {"use_qk_norm": True, "logit_scale": 1.0},
    "cohere2": {**WINDOWS, "logit_scale": 1.0},
    "cohere2_moe": {**LOCAL, **WINDOWS, "logit_scale": 1.0},
    "cwm": WINDOWS,
    "dots1": {**ROUTED, **WINDOWS, "n_shared_experts": 1},
    "ernie4_5": {},
    "ernie4_5_moe": {**EXPERTS, "moe_num_experts": 4, "moe_k": 2},
    "exaone4": WINDOWS,
    "exaone_moe": {**EXPERTS, **WINDOWS},
    "flex_olmo": EXPERTS,
    "gemma": {},
    "gemma3n_text": {**SHARING, "altup_num_inputs": 2, "laurel_rank": 8, "activation_sparsity_pattern": None},
    "gemma4_text": {**SHARING, **UNEQUAL},
    "gemma4_unified_text": {**WINDOWS, **UNEQUAL, "layer_types": [SLIDING, FULL, FULL]},
    "glm": {},
    "glm4": {},
    "glm4_moe": {**ROUTED, "use_qk_norm": True},
    "granitemoe": LOCAL,
    "granitemoeshared": {**LOCAL, "shared_intermediate_size": 32},
    "helium": {},
    "hy_v3": {**ROUTED, **LOCAL},
    "hyperclovax": {},
    "internlm3": {},
    "iquestcoder": {},
    "jais2": {},
    "jetmoe": {**LOCAL, "kv_channels": 16},
    "kolibri1": {**ROUTED, **WINDOWS},
    "laguna": {**EXPERTS, **WINDOWS},
    "mellum": {**EXPERTS, **WINDOWS},
    "minimax_m2": LOCAL,
    "ministral": WINDOWS,
    "nanochat": {},
    "olmo": {"clip_qkv": 1.0},
    "olmo3": WINDOWS,
    "olmoe": {**EXPERTS, "clip_qkv": 1.0},
    "persimmon": {"num_key_value_heads": 4},
    "phimoe": LOCAL,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "seed_oss": {},
    "solar_open": ROUTED,
    "starcoder2": {"sliding_window": 40},
    "vaultgemma": WINDOWS,
    "gpt_oss": {**LOCAL, **WINDOWS},
    "granite_swa": {**WINDOWS, "layer_rope_theta": [10000.0, 500.0, 10000.0]},
    "granitemoe_swa": {**LOCAL, **WINDOWS, "layer_rope_theta": [10000.0, 500.0, 10000.0]},
    "mimo_v2_flash": {**ROUTED, **WINDOWS, "v_head_dim": 8, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    "ministral3": TEMPERATE,
    "flint": {**EXPERTS, **WINDOWS, "shared_expert_intermediate_size": 32, "mlp_only_layers": [0]},
}


def save_model(family: str, folder: Path, *, landmarks: bool = False, uneven: bool = False, **changes: Any) -> Path:
    """Write a random model of a family; with `landmarks` its config tells trained ones.

    Norms and biases start as ones and zeros, which hides in which order things happen; `uneven` makes them random.
    """
    torch.manual_seed(7)
    settings = {**SIZES, **FAMILIES.get(family, {}), **changes}
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
            elif uneven and parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
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
        fused: attend with the CPU kernels where they serve these settings, instead of the reference
        device: where model and cache lie
        config: how the cache is set up
    """

    def __init__(self, folder: Path, *, fused: bool = False, device: torch.device | None = None, **config: Any) -> None:
        settings = EngineConfig(**{"kv_bytes": 32 << 20, "dtype": "float32", "landmark_dtype": "float32", **config})
        self.model = load_model(str(folder), "float32", device, settings.weights)
        self.layout = settings.layout(self.model)
        self.settings = settings.retrieval(self.model)
        self.store = BlockStore(DeviceTier(self.layout, 32 << 20, self.model.device))
        facts = (self.model.layers, self.layout, self.settings)
        fused = fused and FusedAttention.serves(self.layout, self.settings)
        attention = FusedAttention(*facts) if fused else ReferenceAttention(*facts, self.model.device)
        self.runner = ModelRunner(self.model, attention)
        self.landmark = self.model.landmarks.token_id if self.model.landmarks else None

    def session(self, name: str = "session") -> Session:
        return Session(name, self.store, index_shapes(self.model, self.settings, self.layout))

    def span(self, session: Session, end: int, fetch: int | None) -> Span:
        """The session's next text tokens up to `end`."""
        start = session.computed
        session.reserve(end)
        tokens = with_landmarks(session.tokens[start:end].tolist(), start, self.landmark, self.layout)
        return Span(session, start, end, tokens, fetch, top_p=self.settings.top_p)

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
