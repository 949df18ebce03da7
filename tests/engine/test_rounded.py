"""Weights in 8 bits: each nearest to what it was, products those of the rounded weights, and nothing else rounded."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from engine import EngineConfig, InvalidParameter, load_engine, load_model, loading
from engine.assembly import identity
from engine.experts import blocks_of, in_blocks
from engine.pairs import FEW
from engine.rounded import RoundedEmbedding, RoundedLinear, round_weights, rounded, rounded_layer
from tests.engine.test_families import full_attention
from tests.models import FAMILIES, Bench, random_tokens, save_model

TYPES = [torch.float32, torch.bfloat16, torch.float16]


def nearest(weight: Tensor) -> Tensor:
    """Weights as 8 bits can say them; in fp32, so that one in the middle of two numbers becomes the same."""
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    return ((weight.float() / scale).round() * scale).nan_to_num().to(weight.dtype)


def random_layer(channels: int, outputs: int, dtype: torch.dtype, *, bias: bool) -> RoundedLinear:
    torch.manual_seed(channels + outputs)
    return rounded_layer(nn.Linear(channels, outputs, bias=bias).to(dtype))


def product(layer: RoundedLinear, x: Tensor) -> Tensor:
    """In fp64, of the layer's own numbers."""
    weight = layer.numbers.double() * layer.scales.double()[:, None]
    return nn.functional.linear(x.double(), weight, None if layer.bias is None else layer.bias.double())


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU without instructions for 16 bits, whatever runs the test."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


# -- rounding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1000, 4200), (2, 1 << 23)])
def test_weights_become_the_nearest_numbers(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape[0], 1).exp() * torch.randn(shape)
    numbers, scales = rounded(weight.to(dtype))
    weight = weight.to(dtype).float()
    assert (numbers.dtype, scales.dtype) == (torch.int8, torch.float32)
    assert torch.equal(numbers.abs().amax(1), torch.full(shape[:1], 127, dtype=torch.int8))
    assert ((numbers * scales[:, None] - weight).abs() <= 0.5001 * scales[:, None]).all()


def test_a_row_of_zeros_stays_one() -> None:
    layer = nn.Linear(64, 3)
    nn.init.zeros_(layer.weight)
    x = torch.randn(2, 64)
    assert torch.equal(rounded_layer(layer)(x), layer.bias.expand(2, 3))


# -- products -----------------------------------------------------------------------------------------------------


def check_products(channels: int, outputs: int, dtype: torch.dtype) -> None:
    """For any number of rows; what is rounded is the result: once, or for many rows of bf16 before scale and bias."""
    layer = random_layer(channels, outputs, dtype, bias=outputs != 64)
    x = torch.randn(1, 70, channels).to(dtype)
    for rows in (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, FEW, FEW + 1, 70):
        found, expected = layer(x[:, :rows]), product(layer, x[:, :rows])
        assert found.dtype == dtype
        once = rows <= FEW or dtype != torch.bfloat16
        size = expected.abs() + (0 if layer.bias is None else layer.bias.double().abs())
        bound = (0.51 if once else 1.6) * torch.finfo(dtype).eps * size + 3e-6
        assert ((found.double() - expected).abs() <= bound).all(), rows


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("channels", "outputs", "threads"),
    [(7, 3, 1), (48, 67, 1), (64, 1, 1), (64, 64, 1), (96, 3, 1), (128, 66, 1), (320, 1003, 1), (320, 1003, 2)],
)
def test_products_are_those_of_the_rounded_weights(
    channels: int, outputs: int, dtype: torch.dtype, threads: int
) -> None:
    torch.set_num_threads(threads)
    check_products(channels, outputs, dtype)
    torch.set_num_threads(1)


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("channels", [7, 64, 320])
def test_products_do_not_need_new_instructions(channels: int) -> None:
    check_products(channels, 67, torch.bfloat16)


def test_every_number_and_place_counts() -> None:
    """One number of the matrix at a time, all 255 of them, in bf16: nothing is looked up or woven wrongly."""
    numbers = torch.arange(-127, 128, dtype=torch.int8)[:, None] * torch.eye(64, dtype=torch.int8)[:, None]
    layer = RoundedLinear(
        nn.Parameter(numbers.view(-1, 64), requires_grad=False), torch.ones(64 * 255), None, torch.bfloat16
    )
    x = 2.0 ** torch.arange(64)[None].remainder(17).bfloat16()
    for rows in (1, 3):
        found = layer(x.expand(rows, -1))
        assert torch.equal(found, (x.T.float() * torch.arange(-127.0, 128)).reshape(1, -1).expand(rows, -1).bfloat16())


def test_a_row_does_not_depend_on_those_beside_it() -> None:
    layer, x = random_layer(512, 203, torch.bfloat16, bias=True), torch.randn(FEW, 512).bfloat16()
    alone = torch.cat([layer(row[None]) for row in x])
    for rows in range(2, FEW + 1):
        assert torch.equal(layer(x[:rows]), alone[:rows])


# -- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_answers_as_one_with_such_weights(family: str, tmp_path: Path) -> None:
    """transformers' own, in fp32; prompt in parts and tokens one by one."""
    folder, tokens = save_model(family, tmp_path / family, uneven=True), random_tokens(60)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    with torch.no_grad():
        before = model.get_input_embeddings().weight.clone()
        linear = {id(m.weight): m.weight for m in model.modules() if type(m) is nn.Linear}
        for weight in linear.values():
            weight.copy_(nearest(weight))
        for block in (getattr(m, name) for m in model.modules() if in_blocks(m) for name in blocks_of(m)):
            block.copy_(nearest(block.flatten(0, 1)).view(block.shape))
        table = model.get_input_embeddings()
        if id(table.weight) in linear and type(table) is not nn.Embedding:  # of a kind that stays as it is
            model.lm_head.weight, model.config.tie_word_embeddings = nn.Parameter(table.weight.clone()), False
            table.weight.copy_(before)
    model.save_pretrained(tmp_path / "rounded")
    bench = Bench(folder, block_size=8, recent_blocks=2, weights="int8")
    assert sum(isinstance(m, RoundedLinear) for m in bench.model.model.modules()) > 3
    found = bench.logits(bench.session(), tokens, cuts=[41, 5, 1, 1, 12], fetch=None)
    torch.testing.assert_close(found, full_attention(tmp_path / "rounded", tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_a_shared_matrix_stays_shared_and_old_ones_go(tied: bool, tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "llama", tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
    old = [weakref.ref(m.weight) for m in model.modules() if type(m) is nn.Linear]
    vectors, count = nearest(model.model.embed_tokens.weight.detach().float()), model.num_parameters()
    round_weights(model)
    assert not any(type(m) is nn.Linear for m in model.modules())
    assert all(weight() is None for weight in old), "kept by somebody"
    assert model.num_parameters() == count
    table, ids = model.model.embed_tokens, torch.arange(128)[None]
    assert isinstance(table, RoundedEmbedding if tied else nn.Embedding)
    assert not tied or table.numbers is model.lm_head.numbers
    close = 0.005 if tied else 0.05
    torch.testing.assert_close(table(ids)[0].float(), vectors, atol=close, rtol=close)
    assert table(ids).dtype == torch.bfloat16


def test_it_is_another_model(tmp_path: Path) -> None:
    """What one computed is not taken for what the other would."""
    folder = str(save_model("llama", tmp_path / "llama"))
    assert identity(load_model(folder)) != identity(load_model(folder, weights="int8"))


def test_an_engine_tells_what_it_keeps(tiny_folder: Path) -> None:
    told = [load_engine(str(tiny_folder), EngineConfig(kv_bytes=1 << 20, weights=w)) for w in ("auto", "int8")]
    assert [engine.description.dtype for engine in told] == ["float32", "int8"]
    assert len({engine.description.parameters for engine in told}) == 1


def test_a_device_other_than_a_cpu_is_refused(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "place", torch.device)
    with pytest.raises(InvalidParameter, match="weights: int8 is for a CPU, and the device is cuda:1"):
        load_engine(str(tiny_folder), EngineConfig(device="cuda:1", weights="int8"))
