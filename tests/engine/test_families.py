"""Fetching every block is full attention, for each family of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.families import ROPE_TYPES, SUPPORTED
from tests.models import FAMILIES, Bench, random_tokens, save_model

FREQUENCIES = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.2, 4.0]
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "short_factor": [1.0] * 8,
        "long_factor": FREQUENCIES,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 1024},
}


def full_attention(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Logits (tokens, vocabulary) of transformers' own eager attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="float32").eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def served(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Logits (tokens, vocabulary) of Cairn, read in pieces and fetching everything."""
    bench = Bench(folder, block_size=8, recent_blocks=2)
    return bench.logits(bench.session(), tokens, cuts=[61, 40, 1, 1, len(tokens) - 103], fetch=None)


def same_as_full_attention(folder: Path) -> None:
    tokens = random_tokens(150)
    expected = full_attention(folder, tokens)
    assert expected.std() > 0.01, "the model says something"
    torch.testing.assert_close(served(folder, tokens), expected, atol=1e-4, rtol=1e-4)


def test_what_is_supported_is_what_was_checked() -> None:
    assert set(FAMILIES) == SUPPORTED
    assert set(SCALINGS) | {"proportional"} == ROPE_TYPES, "Gemma 4 has proportional frequencies"


@pytest.mark.parametrize("family", FAMILIES)
def test_fetching_every_block_equals_full_attention(family: str, tmp_path: Path) -> None:
    same_as_full_attention(save_model(family, tmp_path / family, uneven=True))


# -- rotary positions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "ernie4_5"])
@pytest.mark.parametrize("kind", SCALINGS)
def test_scaled_rotary_positions_equal_full_attention(kind: str, family: str, tmp_path: Path) -> None:
    parameters = {"rope_theta": 10000.0, "rope_type": kind, **SCALINGS[kind]}
    same_as_full_attention(save_model(family, tmp_path / "scaled", rope_parameters=parameters))


@pytest.mark.parametrize("attention", [{"attention_factor": 1.7}, {"mscale": 0.7, "mscale_all_dim": 1.4}])
def test_yarn_scales_what_it_says(attention: dict[str, float], tmp_path: Path) -> None:
    parameters = {"rope_theta": 10000.0, "rope_type": "yarn", **SCALINGS["yarn"], **attention}
    same_as_full_attention(save_model("llama", tmp_path / "yarn", rope_parameters=parameters))


@pytest.mark.parametrize(("family", "kind"), [("glm4_moe", "yarn"), ("phi", "yarn"), ("phi3", "longrope")])
def test_scaling_a_part_of_the_channels(family: str, kind: str, tmp_path: Path) -> None:
    parameters = {"rope_theta": 10000.0, "rope_type": kind, "partial_rotary_factor": 0.5, **SCALINGS[kind]}
    if kind == "longrope":
        parameters |= {"short_factor": [1.0] * 4, "long_factor": FREQUENCIES[:4]}
    changes: dict[str, Any] = {"rope_parameters": parameters, "original_max_position_embeddings": 64}
    same_as_full_attention(save_model(family, tmp_path / "part", **changes))


def test_longrope_keeps_its_factors_for_long_texts(tmp_path: Path) -> None:
    """transformers changes them at the original length, where everything kept would have to be computed again."""
    parameters = {"rope_theta": 10000.0, "rope_type": "longrope", **SCALINGS["longrope"]}
    changes: dict[str, Any] = {"rope_parameters": parameters, "original_max_position_embeddings": 64}
    folder = save_model("phi3", tmp_path / "long", **changes)
    tokens = random_tokens(150)
    long = full_attention(folder, tokens)[:60]
    bench = Bench(folder, block_size=8)
    torch.testing.assert_close(bench.logits(bench.session(), tokens[:60], [60], None), long, atol=1e-4, rtol=1e-4)
    assert (full_attention(folder, tokens[:60]) - long).abs().max() > 0.01


# -- layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "positions"), [
    ("smollm3", [True, False, True]),
    ("cohere2", [True, False, True]),
    ("exaone4", [True, False, True]),
    ("afmoe", [True, False, True]),
    ("granite", [True, True, True]),
])  # fmt: skip
def test_layers_without_positions_are_found(family: str, positions: list[bool], tmp_path: Path) -> None:
    layers = Bench(save_model(family, tmp_path / family)).model.layers
    assert [layer.rotation.frequencies is not None for layer in layers] == positions


@pytest.mark.parametrize(("family", "windows"), [
    ("llama", [None, None, None]),
    ("mistral", [40, 40, 40]),
    ("gemma3_text", [24, None, 24]),
    ("gemma4_text", [24, None, 24, None]),
    ("qwen3_moe", [None, None, None]),
])  # fmt: skip
def test_only_layers_that_see_everything_have_an_index(family: str, windows: list[int | None], tmp_path: Path) -> None:
    bench = Bench(save_model(family, tmp_path / family))
    assert [layer.window for layer in bench.model.layers] == windows
    indexes = bench.session().indexes
    assert [index is None for index in indexes] == [window is not None for window in windows]


def test_a_window_that_the_model_ignores_is_ignored(tmp_path: Path) -> None:
    same_as_full_attention(save_model("llama", tmp_path / "stray", sliding_window=24))


def test_layers_with_a_window_read_nothing_before_it(tmp_path: Path) -> None:
    """Three layers of window 16 see 46 positions: what stands before changes nothing, and one position later does."""
    bench = Bench(save_model("mistral", tmp_path / "window", sliding_window=16), block_size=8, recent_blocks=2)
    tokens, others = random_tokens(150), random_tokens(150, seed=1)
    reach = 150 - 46

    def last(changed: int) -> torch.Tensor:
        """The last row of logits, with the first `changed` tokens replaced."""
        name = str(changed)
        return bench.logits(bench.session(name), others[:changed] + tokens[changed:], [100, 50], None)[-1]

    torch.testing.assert_close(last(reach), last(0), atol=0, rtol=0)
    assert (last(reach + 1) - last(0)).abs().max() > 1e-6


# -- choosing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["mean", "box", "box-mean"])
def test_fetching_as_many_blocks_as_there_are_equals_full_attention(rule: str, tiny_folder: Path) -> None:
    """Through selection and gathering, not through the switch that fetches all."""
    tokens = random_tokens(150)
    bench = Bench(tiny_folder, block_size=8, recent_blocks=1, landmarks=rule)
    # 150 tokens are 19 blocks; at most 17 are far, of which 16 can be fetched: the last far one is the sink.
    logits = bench.logits(bench.session(), tokens, cuts=[75, 75], fetch=15)
    expected = full_attention(tiny_folder, tokens)
    torch.testing.assert_close(logits[:136], expected[:136], atol=1e-4, rtol=1e-4)


def test_fetching_few_blocks_differs_from_full_attention(tiny_folder: Path) -> None:
    """The identity above is not an accident of attention that looks nowhere."""
    tokens = random_tokens(150)
    bench = Bench(tiny_folder, block_size=8, recent_blocks=1)
    logits = bench.logits(bench.session(), tokens, cuts=[150], fetch=1)
    assert (logits - full_attention(tiny_folder, tokens)).abs().max() > 0.05
