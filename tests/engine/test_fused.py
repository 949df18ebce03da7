"""The kernels read what the reference reads, whatever the model, the settings and the pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cache import BEGINNING, BlockStore, CacheLayout, DeviceTier, Session
from engine import EngineConfig, FusedAttention, ReferenceAttention, Step, index_shapes
from engine.attention import fused
from engine.attention.desk import Desk
from engine.attention.plans import sines
from engine.rotation import Rotation
from tests.models import FULL, SLIDING, Bench, random_tokens, save_model

LENGTH, DRAWN = 150, 24
BLOCKS: dict[str, Any] = {
    "block_size": 8, "recent_blocks": 2, "sink_blocks": 1, "landmarks": "moments", "landmark_dtype": "int4",
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "absolute": {"positions": "absolute"},
    "bounded": {"positions": "bounded"},
    "the rest": {"positions": "absolute", "estimate_rest": True},
    "the rest without slopes": {"positions": "bounded", "estimate_rest": True, "rest_slopes": False},
    "no sinks": {"positions": "bounded", "sink_blocks": 0},
    "a dense layer": {"positions": "absolute", "dense_layers": 1},
    "copies": {"block_size": 16, "recent_blocks": 1, "positions": "absolute", "copied_blocks": 2},
    "copies and the rest": {
        "block_size": 16, "recent_blocks": 1, "positions": "bounded", "copied_blocks": 2, "estimate_rest": True,
    },
    "sections": {"block_size": 2, "own_values": 20, "positions": "absolute", "estimate_rest": True},
    "sections beside sinks": {
        "block_size": 2, "own_values": 0, "sink_blocks": 5, "positions": "bounded", "estimate_rest": True,
    },
    "pairs that stay closed": {"block_size": 2, "own_values": 7, "positions": "bounded", "estimate_rest": True},
    "sections and copies": {
        "block_size": 16, "recent_blocks": 0, "sink_blocks": 0, "own_values": 1, "copied_blocks": 1,
        "estimate_rest": True,
    },
    "copies of large blocks": {"block_size": 32, "recent_blocks": 0, "copied_blocks": 5, "estimate_rest": True},
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"num_key_value_heads": 4},
    "mistral": {"sliding_window": 20},
    "gemma3_text": {"sliding_window": 24, "layer_types": [SLIDING, FULL, SLIDING]},
    "phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 1},
    "glm": {},
    "smollm3": {"no_rope_layers": [1, 0, 1], "layer_types": [FULL] * 3},
    "ministral3": {},
    "gpt_oss": {"num_local_experts": 4, "sliding_window": 24, "layer_types": [SLIDING, FULL, SLIDING]},
}


APART = {"copied_blocks": 1e-3, "own_values": 8e-3}
FREE: dict[str, Any] = {"block_size": 8, "recent_blocks": 2, "positions": "bounded"}


def length_of(settings: dict[str, Any]) -> int:
    """Tokens of a prompt: so many that some of its queries look at pairs, where the settings have any."""
    return max(LENGTH, (BEGINNING + 11) * settings["block_size"] if "own_values" in settings else 0)


def decoded(folder: Path, fused: bool, fetch: int | None, **settings: Any) -> torch.Tensor:
    """Logits of a prompt that is read in pieces, and of tokens computed one by one."""
    bench, length = Bench(folder, fused=fused, **settings), length_of(settings)
    return bench.logits(bench.session(), random_tokens(length + DRAWN), [60, length - 60, *[1] * DRAWN], fetch)


def alike(found: Tensor, expected: Tensor, *, apart: float = 0.0) -> None:
    """Equal but for few: of a number between two of the 8-bit steps the last bit decides which one it takes.

    And but for fewer by more, for the last bit also decides between blocks: the reference itself is 0.015 off in a row
    where embeddings are changed by a ten-millionth.

    Args:
        apart: the mean difference in deviations that is allowed where the reference rounds other weights together, or
            none (`tests/cache/test_copies.py` and `tests/cache/test_sections.py` have the kernels' own sums)
    """
    if apart:
        torch.testing.assert_close(found, expected, atol=0.15, rtol=0)
        assert (found - expected).abs().mean() < apart * expected.std()
        return
    torch.testing.assert_close(found, expected, atol=3e-2, rtol=1e-3)
    for off, share in ((2e-4, 0.02), (2e-3, 0.004)):
        assert ((found - expected).abs() > off + 1e-3 * expected.abs()).float().mean() < share


def same(folder: Path, fetch: int | None = 3, **settings: Any) -> None:
    expected, found = (decoded(folder, fused, fetch, **settings) for fused in (False, True))
    assert expected.std() > 0.01
    alike(found, expected, apart=max((APART[name] for name in APART if name in settings), default=0.0))


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of queries that the kernels attended for: without any, every comparison would be true."""
    calls: list[int] = []
    original = FusedAttention._count

    def counting(self: FusedAttention, desk: Desk, step: Step, layers: int = 1) -> None:
        calls.extend(layers * desk.plan.positions.tolist())
        original(self, desk, step, layers)

    monkeypatch.setattr(FusedAttention, "_count", counting)
    return calls


@pytest.mark.parametrize("kind", SETTINGS)
def test_kernels_read_what_the_reference_reads(kind: str, tiny_folder: Path, counted: list[int]) -> None:
    settings = BLOCKS | SETTINGS[kind]
    same(tiny_folder, **settings)
    assert len(counted) == 3 * (length_of(settings) + DRAWN)


@pytest.mark.parametrize("fetch", [0, 1, 100, None])
def test_few_blocks_and_all_of_them(fetch: int | None, tiny_folder: Path, counted: list[int]) -> None:
    same(tiny_folder, fetch, **BLOCKS, estimate_rest=True)
    assert len(counted) == 3 * (LENGTH + DRAWN)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", ["absolute", "bounded"])
def test_families_are_turned_and_windowed_as_by_the_reference(
    family: str, positions: str, tmp_path: Path, counted: list[int]
) -> None:
    folder = save_model(family, tmp_path / family, uneven=True, **FAMILIES[family])
    same(folder, **BLOCKS, positions=positions, estimate_rest=True)
    assert len(counted) == 3 * (LENGTH + DRAWN)


@pytest.mark.parametrize("fetch", [0, 3, 100])
def test_trained_landmarks_gate_their_blocks(fetch: int, landmark_folder: Path, counted: list[int]) -> None:
    same(landmark_folder, fetch)
    assert len(counted) > 3 * (LENGTH + DRAWN), "with landmarks between the tokens"


def test_many_trained_landmarks_are_looked_at_by_tiles_as_by_the_reference(
    landmark_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a prompt and one by one; every query chooses what it chose in other pieces, but where the last bit decides."""
    monkeypatch.setattr("cache.stretches.STRETCH", 256)
    tokens, pieces = random_tokens(5400), [4900, 470, *[1] * 30]

    def logits(tiled_at: int | None, cuts: list[int], *, quick: bool = True) -> Tensor:
        monkeypatch.setattr("engine.config.TILED_AT", tiled_at)
        bench = Bench(landmark_folder, fused=quick, landmark_dtype="int4")
        assert bench.settings.tiles_beyond(1) == tiled_at
        assert bench.settings.tiles_beyond(2) is None
        return bench.logits(bench.session(), tokens, cuts, 3)

    def differ(one: Tensor, other: Tensor) -> int:
        """How many of the positions."""
        return int(((one - other).abs() > 2e-3 + 1e-3 * other.abs()).any(-1).sum())

    every = logits(None, pieces)
    for tiled_at in (0, 340):
        expected = logits(tiled_at, pieces, quick=False)
        for cuts in (pieces, [5390, *[1] * 10], [600] * 9):
            assert differ(logits(tiled_at, cuts), expected) < 5
        assert differ(every, expected) > 50, "not what a look at every landmark chooses"


@pytest.mark.parametrize("window", [None, 100], ids=["at once", "as a tier bears it"])
@pytest.mark.parametrize("kind", ["the rest", "bounded", "copies and the rest", "trained"])
def test_sessions_that_decode_together_read_what_each_reads_alone(
    kind: str, window: int | None, tiny_folder: Path, landmark_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long ones and short ones, which have nothing to choose yet, and forks, whose storage ends in between."""
    folder = landmark_folder if kind == "trained" else tiny_folder
    bench = Bench(folder, fused=True, **({} if kind == "trained" else BLOCKS | SETTINGS[kind]))
    if window is not None:
        monkeypatch.setattr(DeviceTier, "window", window)
    texts = [random_tokens(length + DRAWN, seed=length) for length in (150, 7, 601, 90, 602)]
    alone = [bench.logits(bench.session(), text, [len(text) - DRAWN, *[1] * DRAWN], 3)[-DRAWN:] for text in texts]
    sessions = [bench.session(str(i)) for i in range(len(texts))]
    for session, text in zip(sessions, texts, strict=True):
        bench.logits(session, text[:-DRAWN], [len(text) - DRAWN], 3)
    sessions.append(sessions[2].fork("fork"))
    together, apart = [], []
    for drawn in range(DRAWN):
        spans = []
        for session, text in zip(sessions, [*texts, texts[2]], strict=True):
            session.append([text[drawn - DRAWN]])
            spans.append(bench.span(session, len(session.tokens), 3))
        found = bench.runner.run(Step(spans))
        row = 0
        for span, expected in zip(spans, [*alone, alone[2]], strict=True):
            together.append(found[row + bench.predicting(span)[-1]])
            apart.append(expected[drawn])
            row += len(span.token_ids)
    alike(torch.stack(together), torch.stack(apart), apart=1e-3 * kind.startswith("copies"))


def test_more_blocks_than_the_kernels_like_go_the_reference_way(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    monkeypatch.setattr(fused, "MOST_READ", 4)
    same(tiny_folder, None, **BLOCKS)
    assert len(counted) < 3 * LENGTH


def test_what_a_tier_cannot_locate_at_once_goes_the_reference_way(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    """A window of memory onto a disk may be smaller than what one query reads."""
    monkeypatch.setattr(DeviceTier, "window", 8)
    same(tiny_folder, **BLOCKS)
    assert len(counted) < 3 * LENGTH
    counted.clear()
    monkeypatch.setattr(DeviceTier, "window", 20)
    same(tiny_folder, **BLOCKS)
    assert len(counted) == 3 * (LENGTH + DRAWN)


@pytest.mark.parametrize(
    "types",
    [
        (torch.float32,) * 3,
        (torch.bfloat16,) * 3,
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float16,) * 3,
    ],
    ids=["fp32", "bf16", "mixed", "fp16"],
)
def test_bf16_caches_are_read_as_they_are(types: tuple[torch.dtype, ...], tiny_folder: Path) -> None:
    """Against the reference on the same bf16 keys and values, whatever the model computes in."""
    bench = Bench(tiny_folder, **BLOCKS)
    layout = CacheLayout(3, 2, 16, 8, torch.bfloat16, 0)
    settings = EngineConfig(dtype="float32", estimate_rest=True, **BLOCKS).retrieval(bench.model)
    outputs = []
    for kind in (ReferenceAttention, FusedAttention):
        torch.manual_seed(1)
        attention = kind(bench.model.layers, layout, settings)
        store = BlockStore(DeviceTier(layout, 8 << 20))
        session = Session("bf16", store, index_shapes(bench.model, settings, bench.layout))
        session.append(random_tokens(100))
        session.reserve(100)
        bench.store = store
        for end in (99, 100):
            span = bench.span(session, end, 3)
            given = [torch.randn(len(span.token_ids), heads, 16) for heads in (4, 2, 2)]
            q, k, v = (x.to(dtype) for x, dtype in zip(given, types, strict=True))
            output = attention(1, q, k, v, Step([span]), 0.25, None)
            session.advance(end)
        outputs.append(output)
    step = torch.finfo(types[0]).eps  # to which either rounds
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4 + step, rtol=1e-3 + step)


def test_sines_are_those_of_the_rotation() -> None:
    rotation = Rotation(torch.tensor([1.0, 0.1, 0.001], dtype=torch.float64))
    cos, sin = torch.from_numpy(sines(rotation, torch.tensor([3, 1_000_000]).numpy()))
    x = torch.randn(2, 6)
    first, second = x[:, :3], x[:, 3:]
    expected = rotation(x, torch.tensor([3, 1_000_000]))
    torch.testing.assert_close(torch.cat((first * cos - second * sin, second * cos + first * sin), 1), expected)


@pytest.mark.parametrize("cuts", [[260], [100] + [1] * 60 + [100]])
@pytest.mark.parametrize("fetch", [1, 4])
@pytest.mark.parametrize("kind", ["trained", "moments"])
def test_fused_attention_equals_the_reference(
    kind: str, fetch: int, cuts: list[int], tiny_folder: Path, landmark_folder: Path
) -> None:
    """Grouped heads too: the model without landmarks has two query heads for each KV head."""
    folder, config = (landmark_folder, {}) if kind == "trained" else (tiny_folder, {**FREE, "landmarks": kind})
    logits = []
    for quick in (False, True):
        bench = Bench(folder, fused=quick, **config)
        logits.append(bench.logits(bench.session(), random_tokens(260), cuts, fetch))
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)
