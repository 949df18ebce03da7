"""Linear layers of 16-bit weights: the products of fp32 arithmetic, rounded once, for any number of rows."""

from __future__ import annotations

import pytest
import torch
from llvmlite import binding
from torch import nn

from engine import many_rows
from engine.linear import quicken


@pytest.fixture(autouse=True)
def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU that multiplies 16-bit matrices slowly, whatever runs the test."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("channels", "outputs"), [(96, 1), (96, 3), (48, 64), (96, 64), (48, 1003), (96, 1003)])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 9, 16, 17, 100])
def test_products_are_those_of_wide_numbers(dtype: torch.dtype, channels: int, outputs: int, rows: int) -> None:
    torch.manual_seed(rows)
    layer = nn.Linear(channels, outputs, bias=rows % 2 == 0).to(dtype)
    x = torch.randn(2, rows, channels).to(dtype)[:1]
    bias = None if layer.bias is None else layer.bias.double()
    expected = nn.functional.linear(x.double(), layer.weight.double(), bias)
    quicken(layer)
    with torch.inference_mode():
        found = layer(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype), atol=1e-6, rtol=2 * torch.finfo(dtype).eps)


def test_a_large_matrix_is_shared_by_threads_and_widened_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_rows, "PIECE_BYTES", 4 * 256 * 1000)
    layer = nn.Linear(256, 5001, bias=False).bfloat16()
    with torch.inference_mode():
        for rows in (1, 40):
            x = torch.randn(rows, 256).bfloat16()
            expected = nn.functional.linear(x.double(), layer.weight.double()).bfloat16()
            undo = quicken(layer)
            torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=2e-2)
            undo()


def test_other_layers_are_left_alone_and_undoing_restores() -> None:
    model = nn.ModuleDict({
        "wide": nn.Linear(32, 8), "narrow": nn.Linear(32, 8).bfloat16(), "odd": nn.Linear(33, 8).bfloat16(),
    })  # fmt: skip
    undo = quicken(model)
    assert [name for name, layer in model.items() if "forward" in vars(layer)] == ["narrow"]
    undo()
    assert not any("forward" in vars(layer) for layer in model.values())


@pytest.mark.parametrize(
    ("short", "tiles", "name", "fast"),
    [
        (False, False, "znver2", False),
        (True, False, "znver4", True),
        (True, False, "znver5", True),
        (True, False, "emeraldrapids", False),
        (True, True, "emeraldrapids", True),
    ],
)
def test_only_instructions_that_are_faster_than_those_for_fp32_are_taken(
    monkeypatch: pytest.MonkeyPatch, *, short: bool, tiles: bool, name: str, fast: bool
) -> None:
    """Intel's AVX512-BF16 alone makes as many products as fp32 has, and torch half of them."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: short)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(binding, "get_host_cpu_name", lambda: name)
    many_rows.amd.cache_clear()
    try:
        assert many_rows.native(torch.bfloat16) == fast
        rows, matrix = torch.randn(40, 64).bfloat16(), torch.randn(96, 64).bfloat16()
        expected = nn.functional.linear(rows.double(), matrix.double()).bfloat16()
        torch.testing.assert_close(many_rows.many(rows, matrix, None, None), expected, atol=1e-2, rtol=2e-2)
    finally:
        many_rows.amd.cache_clear()
