"""A model shows at load what it hands to attention, and what the engine would compute wrongly is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import ModelError, huggingface, load_model
from engine.rehearsal import difference, window
from engine.rotation import Rotation
from tests.models import FULL, SIZES, save_model

HYBRID = {"layer_types": ["linear_attention", FULL, FULL], "linear_num_value_heads": 2, "linear_num_key_heads": 2}


@pytest.fixture
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No family is refused by its name."""
    monkeypatch.setattr(huggingface, "check_supported", lambda name, config: None)


@pytest.mark.usefixtures("unnamed")
@pytest.mark.parametrize(("family", "settings", "reason"), [
    ("hunyuan_v1_dense", {}, "applies its positions in a way"),
    ("gpt2", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 4096}, "change more than its queries and keys"),
    ("llama4_text", {"num_local_experts": 2}, "chunks"),
    ("diffllama", {}, "attends more than once"),
    ("qwen3_next", {"num_experts": 4, "num_experts_per_tok": 2, **HYBRID}, "only 2 of its 3 layers"),
    ("stablelm", {}, "keeps from its attention layers"),
    ("doge", {}, "masks of its own"),
])  # fmt: skip
def test_a_model_that_does_something_else_is_refused(
    family: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = save_model(family, tmp_path / family, uneven=True, **settings)
    with pytest.raises(ModelError, match=reason) as caught:
        load_model(str(folder), "float32")
    assert repr(family) in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("family", "interleaved"), [
    ("llama", False), ("gpt_neox", False), ("qwen3_moe", False),
    ("glm", True), ("cohere", True), ("ernie4_5", True), ("helium", True),
])  # fmt: skip
def test_the_convention_is_seen_in_each_precision(family: str, interleaved: bool, dtype: str, tmp_path: Path) -> None:
    folder = save_model(family, tmp_path / family, uneven=True, max_position_embeddings=200_000)
    rotations = [layer.rotation for layer in load_model(str(folder), dtype).layers]
    assert all(rotation.frequencies is not None for rotation in rotations)
    assert [rotation.interleaved for rotation in rotations] == [interleaved] * SIZES["num_hidden_layers"]


def test_a_model_turns_to_our_attention_after_the_rehearsal(tiny_folder: Path) -> None:
    assert load_model(str(tiny_folder)).model.config._attn_implementation == huggingface.ATTENTION


def test_conventions_are_told_apart() -> None:
    x, positions = torch.randn(5, 16), torch.tensor([0, 1, 2, 50, 4000])
    frequencies = 10_000.0 ** -(torch.arange(4).double() / 4)
    halves = Rotation(frequencies)(x, positions)
    pairs = Rotation(frequencies, interleaved=True)(x, positions)
    assert difference(halves, pairs) > 0.5
    torch.testing.assert_close(halves[:, 8:], x[:, 8:], msg="channels beyond the rotary ones stay")
    torch.testing.assert_close(pairs[:, 8:], x[:, 8:])
    torch.testing.assert_close(halves[0], x[0])
    order = [0, 2, 4, 6, 1, 3, 5, 7, *range(8, 16)]  # neighbours to halves
    torch.testing.assert_close(Rotation(frequencies)(x[:, order], positions), pairs[:, order])


@pytest.mark.parametrize("width", [1, 7, 4096])
def test_a_window_is_read_off_the_mask(width: int) -> None:
    assert window(0, lambda batch, head, q, k: (k <= q) & (k > q - width)) == width


def test_all_before_a_position_is_no_window() -> None:
    assert window(0, lambda batch, head, q, k: k <= q) is None


@pytest.mark.parametrize("name", ["chunks", "both ways", "every other", "nothing", "future"])
def test_other_masks_are_refused(name: str) -> None:
    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return {
            "chunks": (k <= q) & (k // 1000 == q // 1000),
            "both ways": (k - q).abs() < 9,
            "every other": (k <= q) & (k % 2 == 0),
            "nothing": k < 0,
            "future": k > q,
        }[name]

    with pytest.raises(ModelError, match="layer 3 sees"):
        window(3, sees)


def test_angles_that_are_kept_are_those_of_the_positions_asked_for() -> None:
    """Positions that change in place, other shapes and types; more of them than are kept."""
    frequencies = torch.tensor([1.0, 0.1], dtype=torch.float64)
    rotation, x, positions = Rotation(frequencies), torch.randn(3, 4), torch.tensor([5, 6, 7])
    for step in range(3):
        for asked in (positions, positions[:1], positions + 100, positions):
            for dtype in (torch.float32, torch.float64):
                found = rotation(x.to(dtype), asked)
                assert torch.equal(found, Rotation(frequencies)(x.to(dtype), asked.clone()))
        positions += step
