"""What is compared takes turns, and a ratio is that of what was measured together."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from bench.decode import TURN, cairn_at, measure
from bench.shapes import beside, served
from bench.turns import around, ratio, several, take_turns
from engine.huggingface import register
from tests.models import save_model


def test_sides_take_turns() -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    assert take_turns([lambda: side("a", 1.0), lambda: side("b", 2.0)], 2) == [[1.0, 1.0], [2.0, 2.0]]
    assert order == ["a", "b", "a", "b"]


def test_a_slow_minute_slows_both_sides_and_no_ratio() -> None:
    assert ratio([2.0, 2.0, 20.0, 20.0], [1.0, 1.0, 10.0, 10.0]) == 2.0
    assert around([1.0, 1.0, 3.0]) == [1.0, 2.0]


def test_what_ran_before_disturbs_the_first_one_only() -> None:
    took = iter([9.0, 1.0, 2.0])
    assert several(lambda: next(took), 3)() == 2.0


def test_transformers_and_cairn_decode_with_the_same_weights(tmp_path: Path) -> None:
    register()
    model = AutoModelForCausalLM.from_pretrained(save_model("llama", tmp_path / "model")).eval()
    twin = beside(model)
    with torch.inference_mode():
        expected = model(torch.tensor([[5, 6, 7]])).logits
        loaded = served(model)
        assert torch.equal(twin(torch.tensor([[5, 6, 7]])).logits, expected), "it stays as transformers has it"
        assert {weight.data_ptr() for weight in twin.parameters()} == {w.data_ptr() for w in model.parameters()}
        first, other = cairn_at(loaded, 64, 4 * TURN), cairn_at(loaded, 320, 4 * TURN)
        row = measure(first, other, twin, 320, 4)
    assert row.context == 320
    assert row.ratio is not None
    assert first.session.computed == 64 + 2 + 4 * TURN
    assert other.session.computed == 320 + 2 + 4 * TURN
    assert row.transformers_kv_bytes == 320 * other.layout.block_bytes // other.layout.block_size
