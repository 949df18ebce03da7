"""Compiled layers give what transformers' own give, and a layer that is not of the usual kind is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine import layers, load_model, quick
from engine.huggingface import LoadedModel
from engine.pairs import FEW
from engine.quick import QuickLayer
from engine.usual import Parts, pretended, pretended_step
from engine.whole import QuickModel
from tests.models import FAMILIES, save_model

USUAL = ("llama", "qwen2", "qwen3", "mistral", "smollm3")
UNUSUAL = (
    "granite",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "glm",
    "glm4",
    "phi",
    "phi3",
    "mixtral",
    "cohere",
    "arcee",
    "hyperclovax",
)
LARGE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}
"""Multiples of what kernels for bf16 take."""


def loaded(family: str, folder: Path, dtype: str = "float32", weights: str = "auto", **changes: Any) -> LoadedModel:
    return load_model(str(save_model(family, folder / family, uneven=True, **changes)), dtype, weights=weights)


def quick_layers(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if isinstance(vars(layer).get("forward"), QuickLayer)]


def outputs(model: LoadedModel, hidden: Tensor) -> list[Tensor]:
    """What each quick layer makes of hidden (1, rows, channels), and what it made of it before it was one."""
    told = {"cairn_attention": pretended, "cairn_step": pretended_step(model.kv_heads, model.head_dim)}
    still = model.model.model.rotary_emb(hidden, torch.zeros(1, hidden.shape[1], dtype=torch.int64))
    told |= {"position_embeddings": still, "attention_mask": None}
    forwards = [vars(layer)["forward"] for layer in quick_layers(model.model)]
    with torch.inference_mode():
        return [*(mine(hidden, **told) for mine in forwards), *(mine._whole(hidden, **told) for mine in forwards)]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("weights", ["auto", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", USUAL)
def test_a_usual_layer_gives_what_it_gave(family: str, dtype: str, weights: str, tmp_path: Path) -> None:
    model = loaded(family, tmp_path, dtype, weights, **LARGE)
    assert len(quick_layers(model.model)) == 3
    assert isinstance(vars(model.model)["forward"], QuickModel)
    for rows in (1, 2, 3, 7, 16, FEW, FEW + 1, 100):
        torch.manual_seed(rows)
        hidden = 3 * torch.randn(1, rows, 128).to(model.dtype)
        found = outputs(model, hidden)
        close = 1e-4 if dtype == "float32" else 0.03
        for mine, theirs in zip(found[:3], found[3:], strict=True):
            assert (theirs - hidden).abs().max() > 0.5
            torch.testing.assert_close(mine, theirs, atol=2 * close, rtol=close)


@pytest.mark.parametrize("family", UNUSUAL)
def test_another_layer_is_left_alone(family: str, tmp_path: Path) -> None:
    assert not quick_layers(loaded(family, tmp_path).model)


def test_a_layer_that_only_looks_usual_is_seen_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Granite has the same parts and scales what it adds; without looking it would be taken."""
    monkeypatch.setattr(quick, "alike", lambda found, seen: True)
    assert len(quick_layers(loaded("granite", tmp_path).model)) == 3


def clamped(most: float) -> Callable[..., Tensor]:
    return lambda _module, _given, output: output.clamp(-most, most)


def times(factor: float) -> Callable[..., Tensor]:
    return lambda _module, _given, output: factor * output


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("self_attn.q_proj", clamped(8.0)),
        ("self_attn.k_proj", clamped(8.0)),
        ("self_attn.v_proj", clamped(8.0)),
        ("mlp.up_proj", clamped(8.0)),
        ("mlp.gate_proj", clamped(8.0)),
        ("mlp", clamped(100.0)),
        ("mlp", times(0.98)),
        ("self_attn.q_proj", times(1.05)),
        ("self_attn", lambda _module, _given, output: (0.98 * output[0], output[1])),
    ],
)
def test_a_layer_that_does_a_little_more_is_seen_through(part: str, change: Callable[..., Any], tmp_path: Path) -> None:
    """Clamps do nothing to what a few tokens of a random model bring."""
    model = loaded("llama", tmp_path, **LARGE)
    layers.quicken_layers(model.model, model.kv_heads, model.head_dim)()
    model.model.model.layers[1].get_submodule(part).register_forward_hook(change)
    layers.quicken_layers(model.model, model.kv_heads, model.head_dim)
    assert [isinstance(vars(layer).get("forward"), QuickLayer) for layer in model.model.model.layers] == [1, 0, 1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_that_adds_a_little_less_is_seen_through(dtype: str, tmp_path: Path) -> None:
    """Single numbers of 16 bits may be off by more than that."""
    model = loaded("llama", tmp_path, dtype, **LARGE)
    layers.quicken_layers(model.model, model.kv_heads, model.head_dim)()
    model.model.model.layers[1].mlp.down_proj.register_forward_hook(times(0.99))
    layers.quicken_layers(model.model, model.kv_heads, model.head_dim)
    assert [isinstance(vars(layer).get("forward"), QuickLayer) for layer in model.model.model.layers] == [1, 0, 1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_scales_its_logits_a_little_is_seen_through(dtype: str, tmp_path: Path) -> None:
    model = loaded("llama", tmp_path, dtype, **LARGE)
    layers.quicken_layers(model.model, model.kv_heads, model.head_dim)()
    whole = model.model.forward

    def scaled(**told: Any) -> Any:
        given = whole(**told)
        given.logits = 0.99 * given.logits
        return given

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.model), "forward", lambda _model, **told: scaled(**told))
        layers.quicken_layers(model.model, model.kv_heads, model.head_dim)
        assert len(quick_layers(model.model)) == 3
        assert "forward" not in vars(model.model)


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "quick_gelu"])
def test_what_is_near_silu_for_small_numbers_is_seen_through(activation: str, tmp_path: Path) -> None:
    model = loaded("llama", tmp_path, hidden_act=activation)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(0.2)
    layers.quicken_layers(model.model, model.kv_heads, model.head_dim)
    assert not quick_layers(model.model)


def test_weights_are_what_they_were_after_looking(tmp_path: Path) -> None:
    model = loaded("qwen3", tmp_path)
    expected = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    layers.quicken_layers(model.model, model.kv_heads, model.head_dim)
    assert all(torch.equal(weight, expected[name]) for name, weight in model.model.state_dict().items())


@pytest.mark.parametrize("width", [64, 8])
def test_norms_of_other_sizes_than_a_head_are_left_alone(width: int, tmp_path: Path) -> None:
    """OLMo 2 has some over all heads: a job for each head would write beyond its room."""
    model = loaded("qwen3", tmp_path)
    parts = Parts.of(model.model.model.layers[0])
    assert parts is not None
    assert parts.fits(model.kv_heads, model.head_dim)
    parts.q_norm.weight = nn.Parameter(torch.ones(width))
    assert not parts.fits(model.kv_heads, model.head_dim)


def test_another_attention_than_ours_goes_through_the_whole_layer(tmp_path: Path) -> None:
    """Training begins with a model that was loaded to be served."""
    model, tokens = loaded("llama", tmp_path), torch.arange(1, 6)[None]
    model.model.set_attn_implementation("sdpa")
    assert quick_layers(model.model)
    found = model.model(tokens).logits
    layers.quicken_layers(model.model, model.kv_heads, model.head_dim)()
    torch.testing.assert_close(found, model.model(tokens).logits)
    found.sum().backward()
    assert model.model.model.layers[0].self_attn.q_proj.weight.grad is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_looked_at(family: str, tmp_path: Path) -> None:
    """Whichever of its layers are taken."""
    loaded(family, tmp_path)


def test_rows_do_not_depend_on_those_beside_them(tmp_path: Path) -> None:
    model = loaded("llama", tmp_path)
    hidden = torch.randn(1, 8, 64)
    together = outputs(model, hidden)[:3]
    for row in range(8):
        for mine, all_rows in zip(outputs(model, hidden[:, row : row + 1])[:3], together, strict=True):
            torch.testing.assert_close(mine[0, 0], all_rows[0, row], atol=1e-5, rtol=1e-5)


def test_two_threads_have_rooms_of_their_own(tmp_path: Path) -> None:
    model = loaded("llama", tmp_path)
    texts = [torch.randn(1, rows, 64) for rows in (1, 5, FEW + 1, 90)]
    expected = [outputs(model, hidden)[:3] for hidden in texts]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            found = list(pool.map(lambda hidden: [x.clone() for x in outputs(model, hidden)[:3]], texts))
            for mine, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(mine, theirs)


def test_weights_that_a_model_gets_instead_leave_no_stale_addresses(tmp_path: Path) -> None:
    model, hidden = loaded("llama", tmp_path, **LARGE), torch.randn(1, 2, 128)
    expected = outputs(model, hidden)[:3]
    for parameter in model.model.parameters():
        shape, parameter.data = parameter.shape, torch.empty(0)
        parameter.data = torch.full(shape, torch.nan)  # most likely where the old ones were
    for mine, theirs in zip(outputs(model, hidden)[:3], expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_it_can_be_undone(tmp_path: Path) -> None:
    model = loaded("llama", tmp_path)
    undo = layers.quicken_layers(model.model, model.kv_heads, model.head_dim)
    assert quick_layers(model.model)
    undo()
    assert not quick_layers(model.model)
