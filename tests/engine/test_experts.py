"""Experts of a mixture: what transformers computes, by kernels that read only the matrices that a token takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from engine import load_model
from engine.experts import QuickExperts, blocks_of, in_blocks, quicken_experts, round_experts
from engine.pairs import FEW
from tests.models import FAMILIES, SIZES, save_model

WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 192, "moe_intermediate_size": 64}


def random_experts(family: str = "qwen3_moe", dtype: torch.dtype = torch.bfloat16, **changes: Any) -> nn.Module:
    """Those of a random model's last layer."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **WIDE, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    found: nn.Module = [module for module in model.modules() if in_blocks(module)][-1]
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.1)
    return found


def routed(tokens: int, experts: Any, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (T, C), which two experts each takes (T, 2), and how much of them."""
    torch.manual_seed(tokens)
    x = torch.randn(tokens, WIDE["hidden_size"]).to(dtype)
    weights, chosen = torch.randn(tokens, experts.num_experts).softmax(-1).topk(2)
    return x, chosen, weights.to(dtype)


def expected(experts: Any, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """In fp64, token by token, of the numbers that the experts have."""

    def matrix(name: str, expert: int) -> Tensor:
        scales = getattr(experts, f"{name}_scales", None)
        whole: Tensor = getattr(experts, name)[expert].double()
        return whole if scales is None else whole * scales[expert].double()[:, None]

    rows = []
    for row, mine, shares in zip(x.double(), chosen, weights.double(), strict=True):
        total = torch.zeros_like(row)
        for expert, share in zip(mine.tolist(), shares, strict=True):
            gate, up = (matrix("gate_up_proj", expert) @ row).chunk(2)
            total += share * (matrix("down_proj", expert) @ (experts.act_fn(gate) * up))
        rows.append(total)
    return torch.stack(rows)


def check(experts: nn.Module, *, atol: float, dtype: torch.dtype = torch.bfloat16) -> None:
    with torch.inference_mode():
        for tokens in (1, 2, 3, 9, 2 * FEW, 6 * FEW):
            given = routed(tokens, experts, dtype)
            found = experts(*given)
            assert found.dtype == given[0].dtype
            torch.testing.assert_close(found.double(), expected(experts, *given), atol=atol, rtol=0.02)


@pytest.mark.parametrize("threads", [1, 2])
def test_experts_give_what_they_give(threads: int) -> None:
    torch.set_num_threads(threads)
    experts = random_experts()
    undo = quicken_experts(experts)
    assert isinstance(vars(experts).get("forward"), QuickExperts)
    check(experts, atol=0.02)
    undo()
    assert "forward" not in vars(experts)
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_experts_in_8_bits_give_what_rounded_ones_do(dtype: torch.dtype) -> None:
    experts = random_experts(dtype=dtype)
    before = {name: getattr(experts, name).detach().float().clone() for name in blocks_of(experts)}
    round_experts(experts)
    for name, weight in before.items():
        numbers, scales = getattr(experts, name), getattr(experts, f"{name}_scales")
        assert numbers.dtype == torch.int8
        assert ((numbers * scales[..., None] - weight).abs() <= 0.51 * scales[..., None]).all()
    check(experts, atol=0.02 if dtype == torch.bfloat16 else 1e-4, dtype=dtype)


@pytest.mark.parametrize("change", [quicken_experts, round_experts])
def test_experts_do_not_need_new_instructions(
    change: Callable[[nn.Module], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    experts = random_experts()
    change(experts)
    check(experts, atol=0.02)


@pytest.mark.parametrize("change", [quicken_experts, round_experts])
def test_a_token_does_not_depend_on_those_beside_it(change: Callable[[nn.Module], object]) -> None:
    experts = random_experts()
    change(experts)
    with torch.inference_mode():
        x, chosen, weights = routed(FEW, experts)
        alone = torch.cat([experts(*(each[i : i + 1] for each in (x, chosen, weights))) for i in range(FEW)])
        assert torch.equal(experts(x, chosen, weights), alone)


def test_only_experts_that_are_chosen_are_read() -> None:
    experts = random_experts()
    quicken_experts(experts)
    x, _, weights = routed(5, experts)
    with torch.no_grad():
        experts.gate_up_proj[2].fill_(torch.nan)  # type: ignore[index]
        experts.down_proj[2].fill_(torch.nan)  # type: ignore[index]
        chosen = torch.tensor([[0, 3], [3, 1], [1, 0], [3, 0], [1, 3]])
        assert experts(x, chosen, weights).isfinite().all()
        chosen[4, 1] = 2
        assert experts(x, chosen, weights).isfinite().all(1).tolist() == [True] * 4 + [False]


def test_experts_of_another_shape_are_left_alone() -> None:
    narrow = random_experts(moe_intermediate_size=24)
    quicken_experts(narrow)
    quicken_experts(wide := random_experts(dtype=torch.float32))
    assert not {"forward"} & (vars(narrow).keys() | vars(wide).keys())
    config = AutoConfig.for_model("gpt_oss", **{**SIZES, **FAMILIES["gpt_oss"]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    round_experts(model)
    assert not any(in_blocks(module) for module in model.modules()), "outputs behind channels"


def test_a_loaded_model_keeps_experts_in_8_bits_and_nothing_of_the_old_ones(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_model("mixtral", tmp_path / "mixtral"), dtype="bfloat16")
    old = [weakref.ref(getattr(m, name)) for m in model.modules() if in_blocks(m) for name in blocks_of(m)]
    count = model.num_parameters()
    assert len(old) == 6
    round_experts(model)
    assert all(block() is None for block in old)
    assert model.num_parameters() == count
    loaded = load_model(str(tmp_path / "mixtral"), "bfloat16", weights="int8").model
    blocks = [getattr(m, name) for m in loaded.modules() if in_blocks(m) for name in blocks_of(m)]
    assert [block.dtype for block in blocks] == [torch.int8] * 6
