"""Fetching every block is full attention, for each family of models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.models import FAMILIES, Bench, random_tokens, save_model


def full_attention(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Logits (tokens, vocabulary) of transformers' own eager attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="float32").eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_fetching_every_block_equals_full_attention(family: str, tmp_path: Path) -> None:
    folder = save_model(family, tmp_path / family)
    tokens = random_tokens(150)
    bench = Bench(folder, block_size=8, recent_blocks=2)
    logits = bench.logits(bench.session(), tokens, cuts=[61, 40, 1, 1, 47], fetch=None)
    torch.testing.assert_close(logits, full_attention(folder, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scaling", [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
])  # fmt: skip
def test_scaled_rotary_positions_equal_full_attention(scaling: dict[str, object], tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "scaled", rope_parameters={"rope_theta": 10000.0, **scaling})
    tokens = random_tokens(150)
    bench = Bench(folder, block_size=8, recent_blocks=2)
    logits = bench.logits(bench.session(), tokens, cuts=[100, 50], fetch=None)
    torch.testing.assert_close(logits, full_attention(folder, tokens), atol=1e-4, rtol=1e-4)


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
