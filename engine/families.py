"""Which families of models are served, and why others are not.

A family is here when its logits were checked against full attention (tests/engine/test_families.py). What was not
checked is refused by name, with the reason if one is known; the rehearsal then looks at the model itself.
Reads configs only; knows no weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SUPPORTED = frozenset(
    """
    llama qwen2 qwen2_moe qwen3 qwen3_moe mistral mixtral ministral gemma gemma2 gemma3_text gemma3n_text gemma4_text
    gemma4_unified_text phi phi3 phimoe gpt_neox olmo olmo2 olmo3 olmoe flex_olmo smollm3 granite granitemoe
    granitemoeshared cohere cohere2 cohere2_moe starcoder2 glm glm4 glm4_moe seed_oss ernie4_5 ernie4_5_moe exaone4
    exaone_moe arcee apertus helium persimmon bitnet dots1 cwm afmoe jetmoe minimax_m2 nanochat vaultgemma hy_v3
    hyperclovax internlm3 iquestcoder jais2 kolibri1 laguna mellum solar_open gpt_oss granite_swa granitemoe_swa
    mimo_v2_flash flint ministral3
    """.split()
)
"""As `model_type` in a config."""
WITH_IMAGES = frozenset(
    """
    aya_vision cohere2_vision deepseek_vl exaone4_5 gemma3 gemma4 gemma4_unified got_ocr2 idefics3 internvl janus
    lighton_ocr llava llava_next llava_onevision mistral3 ovis2 smolvlm vipllava
    """.split()
)
"""Models that take images as well, of which the text model within is served, if it is of a supported type."""
ROPE_TYPES = frozenset({"default", "linear", "llama3", "longrope", "proportional", "yarn"})
"""Rotary frequencies that do not depend on how long the text is (`longrope` with its factors for long texts)."""
LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})

LEARNED = "its positions are learned or sinusoidal, so a block can not be seen from another place"
ALIBI = "its positions are biases on the scores (ALiBi and the like), not rotations"
LATENT = "it keeps a compressed latent instead of keys and values (MLA), for which the cache has no form yet"
HYBRID = "some of its layers keep a running state instead of keys and values, which can not be searched"
CHUNKED = "it attends in chunks and scales queries by their position"
NORMED = "it norms queries and keys after it rotated them, so that they can not be rotated later"
SPARSE = "it chooses the keys that it reads by a rule of its own"
REPEATED = "a layer attends more than once for each token"
CLOSED = "its code in transformers does not let another attention in"
WRAPPER = "it takes images or sounds as well, and only text models are served"
ENCODER = "it does not continue a text"

REASONS = {
    LEARNED: "gpt2 gpt-sw3 openai-gpt gpt_neo gpt_bigcode opt biogpt xglm ctrl moss_transcribe_diarize imagegpt",
    ALIBI: "bloom mpt cpmant",
    LATENT: "deepseek_v2 deepseek_v3 deepseek_v32 kimi_linear glm4_moe_lite glm_moe_dsa longcat_flash "
    "minicpm3 youtu axk1 axk2 mistral4 dots3_note dots3_note_text hy_v4",
    HYBRID: "mamba mamba2 falcon_mamba jamba bamba zamba zamba2 zaya falcon_h1 nemotron_h granitemoehybrid lfm2 "
    "lfm2_moe lfm3 qwen3_next qwen3_5_text qwen3_5_moe_text qwen4_exp_text olmo_hybrid minimax recurrent_gemma rwkv "
    "xlstm bailing_hybrid inkling_text inkling2_text",
    CHUNKED: "llama4_text",
    NORMED: "hunyuan_v1_dense hunyuan_v1_moe",
    SPARSE: "doge deepseek_v4 minimax_m3_vl_text",
    REPEATED: "diffllama hrm_text",
    CLOSED: "falcon gptj codegen gpt_neox_japanese stablelm nemotron dbrx",
    WRAPPER: "fuyu emu3 git moshi musicgen musicgen_melody got_ocr2 phi4_multimodal aria_text",
    ENCODER: "bert roberta camembert electra xlm-roberta modernbert rembert megatron-bert roformer big_bird",
}


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The config of what is served: of a model that takes images as well, that of its text model."""
    inner = getattr(config, "text_config", None)
    if inner is None or inner.model_type not in SUPPORTED or config.model_type not in WITH_IMAGES:
        return config
    inner.tie_word_embeddings = config.tie_word_embeddings  # the outer model owns the last matrix
    if getattr(config, "eos_token_id", None) is not None:
        inner.eos_token_id = config.eos_token_id
    return inner


def check_supported(name: str, config: PretrainedConfig) -> None:
    """Refuse by name what the engine does not compute faithfully; raises ModelError."""
    family = config.model_type
    reason = reason_against(config)
    if reason is not None or family not in SUPPORTED:
        because = f": {reason}" if reason else ""
        raise ModelError(
            f"{name}: models of type {family!r} are not supported{because}. Cairn serves decoder models "
            f"with rotary positions of these types: {', '.join(sorted(SUPPORTED))}"
        )
    for rope_type in sorted(rope_types(config) - ROPE_TYPES):
        raise ModelError(
            f"{name}: rotary positions of type {rope_type!r} are not supported, because they depend on the length "
            f"of the text or were never checked; Cairn computes {', '.join(sorted(ROPE_TYPES))}"
        )


def reason_against(config: PretrainedConfig) -> str | None:
    """Why a model can not be served, from what its config tells and from its name; None if nothing is known."""
    family, kinds = config.model_type, set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES
    known = (
        (family not in SUPPORTED and hasattr(config, "text_config"), wrapped(config)),
        (getattr(config, "is_encoder_decoder", False), "it is an encoder with a decoder, and only decoders are served"),
        (getattr(config, "kv_lora_rank", None) is not None, LATENT),
        (getattr(config, "alibi", False), ALIBI),
        *((family in families.split(), reason) for reason, families in REASONS.items()),
        (bool(kinds), f"it has layers of other kinds than {' and '.join(sorted(LAYER_TYPES))}: {sorted(kinds)}"),
    )
    return next((reason for holds, reason in known if holds), None)


def wrapped(config: PretrainedConfig) -> str:
    """The refusal of a model that wraps a text model."""
    inner = getattr(getattr(config, "text_config", None), "model_type", "unknown")
    return f"{WRAPPER} (the text model in it is of type {inner!r}; save that one alone)"


def rope_types(config: PretrainedConfig) -> set[str]:
    """Rotary types in a config; Gemma 3 has one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {p.get("rope_type", "default") for p in (nested or [parameters])}
