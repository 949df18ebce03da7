"""Models that cannot be served are refused when they are loaded, and the message says what to change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from engine import EngineConfig, EngineError, ModelError, load_engine, load_model
from engine.families import REASONS, SUPPORTED
from tests.models import SIZES

TINY_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY_GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def refused(name: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(name))
    message = str(caught.value)
    assert str(name) in message, "the message names the model"
    return message


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite config.json by a function that changes the dictionary, or returns something else to write."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    changed = change(config)
    path.write_text(json.dumps(config if changed is None else changed))


def test_the_undamaged_copy_is_served(folder: Path) -> None:
    model = load_model(str(folder))
    assert (len(model.layers), model.kv_heads, model.head_dim, model.vocab_size) == (3, 2, 16, 128)
    assert model.eos_token_ids == {2}
    assert model.landmarks is None


# -- folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "~/no-such-folder", "no-such-folder", "a/b/c"])
def test_a_missing_folder(name: str) -> None:
    message = refused(name)
    assert "no such folder" in message
    assert "config.json" in message


def test_a_hub_name_that_cannot_be_had() -> None:
    refused("nobody/no-such-model")  # the tests run without network


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert "has no config.json" in refused(tmp_path)


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    refused(folder / "model.safetensors")


# -- configs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "not json", "[]", "null", "3", '{"model_type": 7}', "{}", "\x00\x01"])
def test_a_config_that_is_no_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config" in refused(folder)


def test_a_config_that_is_not_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x80{}")
    assert "config" in refused(folder)


@pytest.mark.parametrize(("field", "value"), [
    ("hidden_size", "wide"),
    ("num_attention_heads", 0),
    ("num_attention_heads", None),
    ("vocab_size", -1),
    ("num_hidden_layers", "three"),
    ("rope_parameters", "fast"),
    ("model_type", "no_such_type"),
    ("landmarks", {"token_id": 5}),
    ("landmarks", {"token_id": 5, "block_size": 8, "recent_blocks": 2, "sink_blocks": 1, "blocks_per_head": 3, "x": 1}),
    ("landmarks", "yes"),
])  # fmt: skip
def test_a_config_with_a_senseless_value(folder: Path, field: str, value: Any) -> None:
    change_config(folder, lambda config: config.update({field: value}))
    refused(folder)


def test_geometry_of_landmarks_must_make_sense(landmark_folder: Path, tmp_path: Path) -> None:
    for number, (field, value) in enumerate({"block_size": 1, "token_id": 4000, "blocks_per_head": -1}.items()):
        copy = Path(shutil.copytree(landmark_folder, tmp_path / str(number)))
        change_config(copy, lambda config, f=field, v=value: config["landmarks"].update({f: v}))  # type: ignore[misc]
        assert "landmarks" in refused(copy)


# -- families ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "sizes"), [("gpt2", TINY_GPT2), ("bert", TINY_BERT), ("opt", {}), ("t5", {})])
def test_a_model_without_rotary_positions(family: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    AutoConfig.for_model(family, **sizes).save_pretrained(tmp_path)
    message = refused(tmp_path)
    assert repr(family) in message
    assert "rotary positions" in message
    assert "llama" in message, "the message lists what is served"


def test_a_whole_gpt2_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=64, **TINY_GPT2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="rotary positions"):
        load_engine(str(tmp_path), EngineConfig(kv_bytes=1 << 20))


@pytest.mark.parametrize(("family", "reason"), [
    ("gpt_bigcode", "learned"),
    ("bloom", "ALiBi"),
    ("mpt", "ALiBi"),
    ("deepseek_v3", "MLA"),
    ("minicpm3", "MLA"),
    ("mamba2", "running state"),
    ("jamba", "running state"),
    ("qwen3_next", "running state"),
    ("lfm2", "running state"),
    ("llama4_text", "chunks"),
    ("hunyuan_v1_dense", "norms queries and keys after"),
    ("diffllama", "more than once"),
    ("stablelm", "another attention"),
    ("gptj", "another attention"),
    ("t5", "encoder with a decoder"),
    ("roberta", "does not continue"),
])  # fmt: skip
def test_a_family_that_cannot_be_served_is_refused_with_the_reason(family: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    message = refused(tmp_path)
    assert repr(family) in message
    assert reason in message


@pytest.mark.parametrize(("family", "inner"), [
    ("qwen3_5", "qwen3_5_text"), ("llama4", "llama4_text"), ("paligemma", "gemma"),
])  # fmt: skip
def test_a_model_of_images_names_the_text_model_in_it(family: str, inner: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    message = refused(tmp_path)
    assert "only text models are served" in message
    assert repr(inner) in message


@pytest.mark.parametrize(("change", "reason"), [
    ({"alibi": True}, "ALiBi"),
    ({"kv_lora_rank": 16}, "MLA"),
    ({"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "linear_attention"),
    ({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "chunked_attention"),
])  # fmt: skip
def test_a_config_that_tells_what_its_name_hides(folder: Path, change: dict[str, Any], reason: str) -> None:
    change_config(folder, lambda config: config.update(change))
    assert reason in refused(folder)


def test_a_family_that_nobody_checked_is_refused_though_nothing_speaks_against_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "aria_text"}))
    assert "'aria_text' are not supported" in refused(tmp_path)


def test_no_family_is_both_served_and_refused() -> None:
    refusals = [family for families in REASONS.values() for family in families.split()]
    assert len(refusals) == len(set(refusals))
    assert not SUPPORTED & set(refusals)
    assert set(SUPPORTED) <= set(CONFIG_MAPPING_NAMES), "transformers knows each of them"


def test_rotary_positions_that_depend_on_the_length(tmp_path: Path) -> None:
    parameters = {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 2.0}
    AutoConfig.for_model("llama", **SIZES, rope_parameters=parameters).save_pretrained(tmp_path)
    message = refused(tmp_path)
    assert "'dynamic'" in message
    assert "yarn" in message, "the message lists what is supported"


# -- weights -------------------------------------------------------------------------------------------------


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "weights" in refused(folder)


@pytest.mark.parametrize("length", [0, 4, 100, 5000, -1])
def test_truncated_weights(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    assert "weights" in refused(folder)


def test_weights_that_are_something_else(folder: Path) -> None:
    (folder / "model.safetensors").write_text("<html>404 not found</html>" * 100)
    assert "weights" in refused(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    change_config(folder, lambda config: config.update(intermediate_size=100))
    assert "weights" in refused(folder)


def test_weights_with_a_missing_tensor(folder: Path) -> None:
    """Random numbers must not stand in for it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refused(folder)


def test_only_safetensors_are_read(folder: Path) -> None:
    """A pickle could run code."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "weights" in refused(folder)
