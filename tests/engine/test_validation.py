"""A value out of its range is refused by the name of its parameter, before anything is done with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import EngineConfig, InvalidParameter, RetrievalParams, SamplingParams, load_engine, load_model

NAN = float("nan")
SAMPLING: dict[str, tuple[list[Any], list[Any]]] = {  # refused and taken values
    "max_tokens": ([-1, (1 << 31) + 1], [0, 1, 1 << 31]),
    "temperature": ([-0.01, 2.01, NAN, float("inf")], [0.0, 2.0]),
    "top_p": ([0.0, -0.1, 1.01, NAN], [1e-9, 1.0]),
    "top_k": ([-1, 1 << 40], [0, 1, 1 << 31]),
    "min_p": ([-0.1, 1.1, NAN], [0.0, 1.0]),
    "presence_penalty": ([-2.1, 2.1, NAN], [-2.0, 2.0]),
    "frequency_penalty": ([-2.1, 2.1, NAN], [-2.0, 2.0]),
    "repetition_penalty": ([0.0, -1.0, 10.1, NAN], [0.01, 10.0]),
    "seed": ([1 << 63, -(1 << 63) - 1], [None, 0, -(1 << 63), (1 << 63) - 1]),
    "logprobs": ([-1, 21], [None, 0, 20]),
    "prompt_logprobs": ([-1, 21], [None, 0, 20]),
    "logit_bias": ([{1: 100.1}, {1: -100.1}, {1: NAN}], [{}, {1: 100.0, 2: -100.0}]),
}
RETRIEVAL: dict[str, tuple[list[Any], list[Any]]] = {
    "blocks_per_head": ([-1, 4097], [None, 0, 4096]),
    "passages": ([0, -1, 101], [1, 100]),
}
CONFIG: dict[str, tuple[list[Any], list[Any]]] = {
    "max_session_tokens": ([0, -5], [None, 1]),
    "kv_bytes": ([0, -1], [None, 1]),
    "host_kv_bytes": ([0, -1], [None, 1]),
    "weights": (["", "int4", "float32"], ["auto", "int8"]),
    "device": (["", "tpu", "cuda:", "cuda:x", "gpu"], ["auto", "cpu", "cuda", "cuda:1"]),
    "max_running": ([0], [1]),
    "max_waiting": ([-1], [0]),
    "step_tokens": ([0], [1]),
    "landmarks": (["median", "", "Mean"], [None, "mean", "box", "box-mean"]),
    "block_size": ([1, 0], [None, 2]),
    "blocks_per_head": ([-1], [None, 0]),
    "recent_blocks": ([-1], [None, 0]),
    "sink_blocks": ([-1], [None, 0]),
    "threads": ([0, -1], [None, 1]),
    "positions": (["relative", ""], [None, "absolute", "bounded"]),
}


def cases(table: dict[str, tuple[list[Any], list[Any]]], column: int) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in table.items() for value in values[column]]


def refuses(make: Callable[..., object], parameter: str, name: str, value: Any) -> None:
    with pytest.raises(InvalidParameter) as caught:
        make(**{name: value})
    assert caught.value.parameter == parameter
    assert str(caught.value).startswith(f"{parameter}: ")


@pytest.mark.parametrize(("name", "value"), cases(SAMPLING, 0))
def test_sampling_refuses(name: str, value: Any) -> None:
    refuses(SamplingParams, name, name, value)


@pytest.mark.parametrize(("name", "value"), cases(SAMPLING, 1))
def test_sampling_takes_the_whole_range(name: str, value: Any) -> None:
    assert getattr(SamplingParams(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), cases(RETRIEVAL, 0))
def test_retrieval_refuses(name: str, value: Any) -> None:
    refuses(RetrievalParams, f"retrieval.{name}", name, value)


@pytest.mark.parametrize(("name", "value"), cases(RETRIEVAL, 1))
def test_retrieval_takes_the_whole_range(name: str, value: Any) -> None:
    assert getattr(RetrievalParams(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), cases(CONFIG, 0))
def test_config_refuses(name: str, value: Any) -> None:
    refuses(EngineConfig, name, name, value)


@pytest.mark.parametrize(("name", "value"), cases(CONFIG, 1))
def test_config_takes_the_whole_range(name: str, value: Any) -> None:
    assert getattr(EngineConfig(**{name: value}), name) == value


def test_every_number_of_the_sampling_is_bounded() -> None:
    """A new parameter must be listed above, with what is refused."""
    unbounded = {"ignore_eos", "stop_token_ids"}
    assert {field.name for field in dataclasses.fields(SamplingParams)} == set(SAMPLING) | unbounded


# -- config and model together -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["block_size", "recent_blocks", "sink_blocks"])
def test_the_geometry_of_trained_landmarks_is_fixed(name: str, landmark_folder: Path) -> None:
    refuses(lambda **c: load_engine(str(landmark_folder), EngineConfig(kv_bytes=1 << 20, **c)), name, name, 4)


@pytest.mark.parametrize("config", [{"landmarks": "mean"}, {"positions": "absolute"}])
def test_trained_landmarks_cannot_be_replaced(config: dict[str, Any], landmark_folder: Path) -> None:
    with pytest.raises(InvalidParameter, match="trained landmarks"):
        load_engine(str(landmark_folder), EngineConfig(kv_bytes=1 << 20, **config))


def test_a_model_without_landmark_tokens_has_no_trained_ones(tiny_folder: Path) -> None:
    with pytest.raises(InvalidParameter, match="no trained landmarks; use another rule"):
        load_engine(str(tiny_folder), EngineConfig(kv_bytes=1 << 20, landmarks="trained"))


def test_memory_for_less_than_two_blocks_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"kv_bytes: must hold 2 blocks of \d+ bytes"):
        load_engine(str(tiny_folder), EngineConfig(kv_bytes=1000))


def test_sessions_beyond_the_trained_length_need_bounded_positions(tiny_folder: Path) -> None:
    config: dict[str, Any] = {"kv_bytes": 64 << 20, "max_session_tokens": 4097}
    with pytest.raises(InvalidParameter, match=r"max_session_tokens: .* use positions=bounded"):
        load_engine(str(tiny_folder), EngineConfig(**config))
    engine = load_engine(str(tiny_folder), EngineConfig(**config, positions="bounded"))
    assert engine.description.max_session_tokens == 4097


def test_a_session_may_hold_what_the_cache_or_the_training_holds(tiny_folder: Path) -> None:
    model = load_model(str(tiny_folder), "float32")
    layout = EngineConfig(block_size=8).layout(model)

    def limit(capacity: int, *, bounded: bool, wanted: int | None = None) -> int:
        return EngineConfig(max_session_tokens=wanted).session_limit(model, layout, capacity, bounded=bounded)

    assert limit(100, bounded=False) == 800
    assert limit(1000, bounded=False) == model.max_positions == 4096
    assert limit(1000, bounded=True) == 8000
    assert limit(1000, bounded=True, wanted=50) == 50
    assert limit(10, bounded=True, wanted=5000) == 80
