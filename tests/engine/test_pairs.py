"""Products by instructions for bf16: those of fp32 arithmetic, each row's the same bits however many come with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.linear import quicken
from engine.pairs import FEW, PIECE_BYTES, WHOLE_BYTES, PairProduct, piece_of

TWO_BLOCKS = torch.zeros(1, 64, dtype=torch.bfloat16)
pytestmark = pytest.mark.skipif(not PairProduct.fits(TWO_BLOCKS), reason="this processor has no AVX512-BF16")


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


def test_a_narrow_or_wide_matrix_is_left_alone() -> None:
    model = nn.ModuleDict({
        "odd": nn.Linear(48, 8).bfloat16(), "wide": nn.Linear(64, 8), "fits": nn.Linear(64, 8).bfloat16(),
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
