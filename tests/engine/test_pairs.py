"""Products of bf16, with and without instructions: those of fp32, each row's the same bits whatever comes with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.linear import quicken
from engine.pairs import FEW, PIECE_BYTES, WHOLE_BYTES, PairProduct, by_instructions, piece_of

without = pytest.mark.skipif(not by_instructions(torch.bfloat16), reason="this processor has no AVX512-BF16")


@pytest.fixture(params=[pytest.param(True, marks=without), False], autouse=True)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this processor, or as if it had none for bf16."""
    if not request.param:
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda: False)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("outputs", [1, 3, 64, 1003])
@pytest.mark.parametrize("channels", [32, 96, 2048])
def test_products_are_those_of_wide_numbers(outputs: int, channels: int, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(outputs + channels)
    layer = nn.Linear(channels, outputs, bias=outputs in (3, 64)).bfloat16()
    x = torch.randn(1, FEW + 1, channels).bfloat16()
    bias = None if layer.bias is None else layer.bias.double()
    expected = nn.functional.linear(x.double(), layer.weight.double(), bias).bfloat16()
    quicken(layer)
    assert "forward" in vars(layer)
    with torch.inference_mode():
        for rows in (*range(1, 18), FEW, FEW + 1):
            found = layer(x[:, :rows])
            torch.testing.assert_close(found, expected[:, :rows], atol=1e-5, rtol=1e-2)
    torch.set_num_threads(1)


def test_a_row_does_not_depend_on_those_beside_it() -> None:
    layer = nn.Linear(512, 203, bias=False).bfloat16()
    product, x = PairProduct(layer.weight, None), torch.randn(FEW, 512).bfloat16()
    with torch.inference_mode():
        alone = torch.cat([product(row[None]) for row in x])
        for rows in range(2, FEW + 1):
            assert torch.equal(product(x[:rows]), alone[:rows])


def test_sums_are_rounded_to_the_nearest_and_of_two_to_the_even_one() -> None:
    """Also where rounding carries into the exponent, up to infinity."""
    sums = nn.Linear(64, 32, bias=False)
    sums.weight.data = torch.eye(32).repeat_interleave(2, dim=1).bfloat16()
    quicken(sums)
    large, step = 2.0 ** torch.arange(-32, 32)[:, None], 2.0 ** -torch.arange(4.0, 20.0).repeat(2)
    one, other = (1 + torch.arange(32) % 5 / 128) * large, torch.cat([step[:16], -step[16:]]) * large
    most = torch.tensor([3.3895e38, 1.3e36]).bfloat16().float()
    one, other = torch.cat([one, most[0].expand(1, 32)]), torch.cat([other, most[1].expand(1, 32)])
    one, other = one.bfloat16(), other.bfloat16()
    expected = (one.float() + other.float()).bfloat16()
    assert expected[-1].isinf().all()
    with torch.inference_mode():
        x = torch.stack([one, other], dim=-1).flatten(1)
        assert torch.equal(torch.cat([sums(some) for some in x.split(3)]), expected)


def test_a_narrow_or_wide_matrix_is_left_alone() -> None:
    model = nn.ModuleDict({
        "odd": nn.Linear(40, 8).bfloat16(), "wide": nn.Linear(64, 8), "fits": nn.Linear(64, 8).bfloat16(),
    })  # fmt: skip
    undo = quicken(model)
    assert [name for name, layer in model.items() if "forward" in vars(layer)] == ["fits"]
    undo()
    assert not any("forward" in vars(layer) for layer in model.values())


@pytest.mark.parametrize("shape", [(512, 2048), (8192, 2048), (1024, 1024), (512, 512), (32, 64), (8, 65536)])
def test_pieces_of_a_matrix_are_small_and_of_whole_tiles(shape: tuple[int, int]) -> None:
    weight = torch.empty(shape, dtype=torch.bfloat16)
    piece = piece_of(weight)
    assert piece % 4 == 0
    assert piece == shape[0] if weight.nbytes < WHOLE_BYTES else 2 * piece * shape[1] <= max(PIECE_BYTES, 8 * shape[1])
    assert piece_of(weight, weight) == piece or weight.nbytes < WHOLE_BYTES
