"""Attention by chunks: the same function as the dense one and as the engine's, its gradients, and its memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from engine import LayerGeometry, load_model
from engine.rotation import Rotation
from tests.models import FAMILIES, LANDMARK, Bench, random_tokens, save_model
from training import blockwise
from training.attention import LandmarkSettings, landmark_attention
from training.blockwise import blockwise_attention
from training.reader import Blockwise

SETTINGS = LandmarkSettings(block_size=4, recent_blocks=1, sink_blocks=1, blocks_per_head=2)
INV_FREQ = torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
ROTATION = Rotation(INV_FREQ)
SCALING = 6**-0.5
GATHER, MASK = 0, 10_000
"""Largest pools that are read whole: none, or all."""


class Layer(torch.nn.Module):
    """What transformers passes as the module."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer_idx = index


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def inputs(rows: int, slots: int, heads: int = 2, kv_heads: int = 2) -> list[Tensor]:
    return [random(rows, h, slots, 6, seed=i) for i, h in enumerate((heads, kv_heads, kv_heads))]


def plan(settings: LandmarkSettings = SETTINGS, geometry: LayerGeometry | None = None, **options: Any) -> Blockwise:
    """Two layers of which the second chooses; chunks of two blocks."""
    layer = geometry or LayerGeometry(ROTATION)
    return Blockwise(
        [layer, layer], settings=settings, **{"kv_heads": 2, "chunk_slots": 8, "dense_blocks": MASK, **options}
    )


def attend(tensors: list[Tensor], given: Blockwise, index: int = 1, softcap: float | None = None) -> Tensor:
    q, k, v = tensors
    return blockwise_attention(Layer(index), q, k, v, None, SCALING, given, softcap)[0]


def dense(tensors: list[Tensor], settings: LandmarkSettings, index: int = 1, crowd: int = 0) -> Tensor:
    q, k, v = tensors
    return landmark_attention(Layer(index), q, k, v, None, SCALING, INV_FREQ.to(q.dtype), settings, crowd)[0]


# -- one meaning ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense_blocks", [GATHER, MASK])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("change", [{}, {"blocks_per_head": 50}, {"sink_blocks": 0},
                                    {"sink_blocks": 3}, {"recent_blocks": 0}, {"recent_blocks": 20}])  # fmt: skip
def test_it_is_the_dense_attention(change: dict[str, int], index: int, dense_blocks: int) -> None:
    settings, tensors = replace(SETTINGS, **change), inputs(2, 52)
    found = attend(tensors, plan(settings, dense_blocks=dense_blocks), index)
    torch.testing.assert_close(found, dense(tensors, settings, index), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("chunk_slots", [1, 4, 12, 1000])
def test_chunks_do_not_matter(chunk_slots: int) -> None:
    tensors = inputs(2, 52)
    expected = attend(tensors, plan())
    torch.testing.assert_close(attend(tensors, plan(chunk_slots=chunk_slots)), expected)


@pytest.mark.parametrize("dense_blocks", [GATHER, MASK])
@pytest.mark.parametrize("crowd", [4, 12, 32])
@pytest.mark.parametrize("fetch", [1, 3, 100])
def test_a_crowd_is_the_dense_ones(fetch: int, crowd: int, dense_blocks: int) -> None:
    settings, tensors = replace(SETTINGS, blocks_per_head=fetch), inputs(3, 32)
    found = attend(tensors, plan(settings, crowd=crowd, dense_blocks=dense_blocks))
    torch.testing.assert_close(found, dense(tensors, settings, crowd=crowd), atol=1e-6, rtol=1e-6)


def test_a_crowd_is_rounded_up_to_whole_blocks_and_spares_layer_0() -> None:
    tensors = inputs(3, 32)
    assert torch.equal(attend(tensors, plan(crowd=5)), attend(tensors, plan(crowd=8)))
    assert torch.equal(attend(tensors, plan(crowd=8), index=0), attend(tensors, plan(), index=0))


@pytest.mark.parametrize("dense_blocks", [GATHER, MASK])
def test_heads_that_share_keys_choose_together(dense_blocks: int) -> None:
    """What changes a block that the group did not choose changes none of its heads."""
    tensors, settings = inputs(1, 48, heads=4, kv_heads=2), replace(SETTINGS, sink_blocks=0)
    before = attend(tensors, plan(settings, dense_blocks=dense_blocks))[0, -2]  # (heads, dim)
    readers = torch.zeros(4, dtype=torch.int64)
    for block in range(10):  # far from the last query
        changed = tensors[2].clone()
        changed[:, :, 4 * block : 4 * block + 3] += 1.0
        after = attend([*tensors[:2], changed], plan(settings, dense_blocks=dense_blocks))[0, -2]
        differs = ~torch.isclose(after, before).all(-1)
        assert differs[0] == differs[1]
        assert differs[2] == differs[3]
        readers += differs
    assert readers.tolist() == [settings.blocks_per_head] * 4


# -- gradients -----------------------------------------------------------------------------------------------


GEOMETRIES = {
    "full": LayerGeometry(ROTATION),
    "window": LayerGeometry(ROTATION, window=7),
    "partial": LayerGeometry(Rotation(INV_FREQ[:2])),
    "none": LayerGeometry(Rotation(None)),
    "void": LayerGeometry(ROTATION, void=torch.tensor([0.5, -1.0, 2.0, 0.0])),
}


@pytest.mark.parametrize("dense_blocks", [GATHER, MASK])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("options", [{}, {"index": 0}, {"crowd": 8}, {"softcap": 0.7}])
def test_gradients(options: dict[str, Any], geometry: str, dense_blocks: int) -> None:
    """Against finite differences."""
    tensors = [x.requires_grad_() for x in inputs(2, 20, heads=4, kv_heads=2)]
    given = plan(geometry=GEOMETRIES[geometry], crowd=options.get("crowd", 0), dense_blocks=dense_blocks)
    index, softcap = options.get("index", 1), options.get("softcap")
    assert torch.autograd.gradcheck(lambda *x: attend(list(x), given, index, softcap), tensors, fast_mode=True)


@pytest.mark.parametrize("dense_blocks", [GATHER, MASK])
@pytest.mark.parametrize("crowd", [0, 12])
def test_gradients_are_the_dense_ones(crowd: int, dense_blocks: int) -> None:
    tensors, weights = [x.requires_grad_() for x in inputs(3, 40)], random(3, 40, 2, 6, seed=9)
    found = torch.autograd.grad(
        (attend(tensors, plan(crowd=crowd, dense_blocks=dense_blocks)) * weights).sum(), tensors
    )
    expected = torch.autograd.grad((dense(tensors, SETTINGS, crowd=crowd) * weights).sum(), tensors)
    for mine, yours in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, yours, atol=1e-5, rtol=1e-5)


# -- what is served ------------------------------------------------------------------------------------------


def with_geometry(folder: Path, fetch: int) -> LandmarkSettings:
    """Tell landmarks in a model's config."""
    settings = LandmarkSettings(block_size=8, recent_blocks=2, sink_blocks=1, blocks_per_head=fetch)
    config = json.loads((folder / "config.json").read_text())
    config["landmarks"] = {"token_id": LANDMARK, **vars(settings)}
    (folder / "config.json").write_text(json.dumps(config))
    return settings


def training_logits(folder: Path, slots: list[int], given: Blockwise) -> Tensor:
    blockwise.register()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=blockwise.NAME, dtype="float32").eval()
    tokens = torch.tensor([slots])
    with torch.no_grad():
        return model(tokens, position_ids=torch.zeros_like(tokens), use_cache=False, blockwise=given).logits[0]


def agree(folder: Path, fetch: int, dense_blocks: int) -> None:
    """Logits of every text token: training's attention and the engine's."""
    settings, text = with_geometry(folder, fetch), random_tokens(7 * 22)
    slots = [token for i in range(0, len(text), 7) for token in (*text[i : i + 7], LANDMARK)]
    model = load_model(str(folder), "float32")
    given = Blockwise(model.layers, model.kv_heads, settings, chunk_slots=24, dense_blocks=dense_blocks)
    expected = training_logits(folder, slots, given)
    bench = Bench(folder)
    logits = bench.logits(bench.session(), text, [50, 1, 33, 70], fetch=fetch)
    predicting = [i for i in range(len(slots)) if i + 1 == len(slots) or slots[i + 1] != LANDMARK]
    torch.testing.assert_close(logits, expected[predicting], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_what_the_engine_serves(family: str, tmp_path: Path) -> None:
    agree(save_model(family, tmp_path / family), 3, GATHER)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "gpt_neox", "smollm3"])
def test_pools_that_are_read_whole_are_as_served(family: str, tmp_path: Path) -> None:
    agree(save_model(family, tmp_path / family), 3, MASK)


@pytest.mark.parametrize("dense_blocks", [GATHER, MASK])
def test_capped_scores_are_as_served(dense_blocks: int, tmp_path: Path) -> None:
    agree(save_model("gemma2", tmp_path / "capped", attn_logit_softcapping=0.5), 3, dense_blocks)


@pytest.mark.parametrize("fetch", [0, 1, 100])
def test_any_number_of_fetched_blocks_is_as_served(fetch: int, tmp_path: Path) -> None:
    agree(save_model("llama", tmp_path / "llama"), fetch, MASK)


@pytest.mark.parametrize("scaling", [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
])  # fmt: skip
def test_scaled_rotary_positions_are_as_served(scaling: dict[str, object], tmp_path: Path) -> None:
    agree(save_model("llama", tmp_path / "scaled", rope_parameters={"rope_theta": 10000.0, **scaling}), 3, MASK)


# -- memory --------------------------------------------------------------------------------------------------


@dataclass
class Bytes:
    """What a computation needs: bytes kept between the passes, and the largest tensor that either makes."""

    saved: int = 0
    largest: int = 0


class Watch(TorchDispatchMode):
    def __init__(self, seen: Bytes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [x.numel() * x.element_size() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.seen.largest = max([self.seen.largest, *sizes])
        return result


def memory(slots: int, *, blockwise: bool) -> Bytes:
    settings = LandmarkSettings(block_size=16, recent_blocks=3, sink_blocks=1, blocks_per_head=2)
    given = plan(settings, kv_heads=1, chunk_slots=32, dense_blocks=8)
    tensors = [random(1, 1, slots, 6, seed=seed, dtype=torch.float32).requires_grad_() for seed in range(3)]
    seen = Bytes()

    def keep(x: Tensor) -> Tensor:
        seen.saved += x.numel() * x.element_size()
        return x

    with Watch(seen):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            output = attend(tensors, given) if blockwise else dense(tensors, settings)
        output.sum().backward()
    return seen


def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    """Doubling the length doubles what is kept and at most doubles the largest tensor; the dense one quadruples it."""
    short, long = memory(1024, blockwise=True), memory(2048, blockwise=True)
    assert 1.8 < long.saved / short.saved < 2.1
    assert long.largest / short.largest < 2.1
    square = memory(1024, blockwise=False), memory(2048, blockwise=False)
    assert square[1].largest / square[0].largest == pytest.approx(4, rel=0.01)
    assert square[1].saved / square[0].saved > 3.5
    assert long.largest < square[1].largest / 20
    assert long.saved < square[1].saved / 100
