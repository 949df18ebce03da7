"""Of a model that takes images as well the text model is served, and says what the whole one says of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from engine.families import WITH_IMAGES
from tests.models import FAMILIES, SIZES, Bench, random_tokens

IMAGES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip
INNER: dict[str, str] = {
    "aya_vision": "cohere2", "cohere2_vision": "cohere2", "deepseek_vl": "llama", "exaone4_5": "exaone4",
    "gemma3": "gemma3_text", "gemma4": "gemma4_text", "gemma4_unified": "gemma4_unified_text", "got_ocr2": "qwen2",
    "idefics3": "llama", "internvl": "qwen3", "janus": "llama", "lighton_ocr": "qwen3", "llava": "llama",
    "llava_next": "llama", "llava_onevision": "qwen2", "mistral3": "ministral3", "ovis2": "qwen2", "smolvlm": "llama",
    "vipllava": "llama",
}  # fmt: skip


def save_whole(family: str, folder: Path, **changes: Any) -> torch.Tensor:
    """Write a random model of a family that takes images, and what it says of a text: (tokens, vocabulary)."""
    torch.manual_seed(7)
    text = {**SIZES, **FAMILIES[INNER[family]], "model_type": INNER[family]}
    config = AutoConfig.for_model(family, text_config=text, vision_config=IMAGES, **changes)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
        logits: torch.Tensor = model(input_ids=torch.tensor([random_tokens(90)])).logits[0]
    model.save_pretrained(folder)
    return logits


def test_each_of_them_is_checked() -> None:
    assert set(INNER) == WITH_IMAGES


@pytest.mark.parametrize("family", INNER)
def test_the_text_model_says_what_the_whole_one_says(family: str, tmp_path: Path) -> None:
    expected = save_whole(family, tmp_path / family)
    bench = Bench(tmp_path / family, block_size=8, recent_blocks=2)
    found = bench.logits(bench.session(), random_tokens(90), cuts=[61, 1, 28], fetch=None)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_model_tells_whether_its_last_matrix_is_its_first(tied: bool, tmp_path: Path) -> None:
    expected = save_whole("llava", tmp_path / "llava", tie_word_embeddings=tied)
    bench = Bench(tmp_path / "llava", block_size=8)
    found = bench.logits(bench.session(), random_tokens(90), cuts=[90], fetch=None)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_end_of_a_text_may_be_told_by_the_whole_model(tmp_path: Path) -> None:
    save_whole("gemma3", tmp_path / "gemma3", eos_token_id=[2, 9])
    (tmp_path / "gemma3" / "generation_config.json").unlink()
    assert Bench(tmp_path / "gemma3").model.eos_token_ids == {2, 9}
