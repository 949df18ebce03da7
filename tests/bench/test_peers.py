"""Cairn beside llama.cpp: the same model on both sides, and honest ratios.

What runs llama.cpp is skipped where `python -m bench.peers --install` has not been run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.peers import (
    ENVIRONMENT,
    LOWEST_CORRELATION,
    TURN,
    Decode,
    LlamaCpp,
    Prefill,
    agreement,
    correlations,
    decode,
    interpreter,
    main,
    noise_for,
    prefill,
    ratios,
    show,
    transformers_logits,
    versions,
)
from bench.shapes import served
from bench.turns import Timed
from engine.huggingface import register
from tests.models import save_model

needs_llama_cpp = pytest.mark.skipif(
    not interpreter(ENVIRONMENT).exists(), reason=f"llama.cpp is not installed in {ENVIRONMENT}"
)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def small(family: str, folder: Path, **changes: Any) -> PreTrainedModel:
    """A random model with heads as wide as llama.cpp's kernels want them."""
    register()
    sizes = {"hidden_size": 128, "head_dim": 32, **changes}
    return AutoModelForCausalLM.from_pretrained(save_model(family, folder, uneven=True, **sizes), dtype="auto").eval()


class Seconds(LlamaCpp):
    """llama.cpp on a machine where flash attention takes twice as long as the rest."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, bool]] = []

    @contextmanager
    def steps(self, context: int, batch: int, *, flash: bool = True) -> Iterator[Timed]:
        def step() -> float:
            self.asked.append((context, batch, flash))
            return 0.5 if flash else 0.25

        yield step


def test_versions_are_exact() -> None:
    assert set(versions()) == {"llama-cpp-python", "gguf", "numpy"}
    assert all(re.fullmatch(r"\d+(\.\d+)+", version) for version in versions().values())


def test_without_an_environment_the_command_tells_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["peers", "--environment", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        main()
    assert "bench.peers --install" in capsys.readouterr().err


def test_correlation_ignores_what_softmax_ignores() -> None:
    logits = torch.randn(3, 50)
    assert torch.allclose(correlations(logits, 2 * logits + torch.randn(3, 1)), torch.ones(3))
    assert torch.allclose(correlations(logits, -logits), -torch.ones(3))


def test_the_faster_attention_counts(tmp_path: Path) -> None:
    llama = Seconds()
    row = decode(served(small("llama", tmp_path)), llama, 96, 3)
    assert llama.asked == [(96, 1, True)] * 3 * TURN + [(96, 1, False)] * 3 * TURN
    assert (row.context, row.llama_ms, row.flash_ms, row.plain_ms) == (96, 250.0, 500.0, 250.0)
    assert row.ratio == pytest.approx(250 / row.cairn_ms, rel=0.02), "both are rounded, and of the middle one of three"


def test_the_ratio_of_reading_is_above_one_where_cairn_is_faster(tmp_path: Path) -> None:
    llama = Seconds()
    row = prefill(served(small("llama", tmp_path)), llama, 96, 3)
    assert llama.asked == [(96, 512, True)] * 3
    assert row.llama_tokens_per_second == 1024
    assert row.ratio == pytest.approx(row.cairn_tokens_per_second / 1024, abs=0.01, rel=0.02)


def test_the_table_begins_with_the_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    show("shape", [Decode(4096, 2.0, 1.9, 100.0, 200.0, 200.0, 300.0)], [Prefill(0, 512, 0.5, 0.6, 50.0, 100.0)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["4096", "2.00x", "1.90x", "100.0", "200.0", "200.0", "300.0"] in rows
    assert ["0", "0.50x", "0.60x", "50.0", "100.0"] in rows


def test_ratios_are_of_turns_and_of_the_fastest() -> None:
    assert ratios([1.0, 2.0, 10.0], [4.0, 6.0, 80.0]) == (4.0, 4.0), "3.0 would be that of the medians"


@needs_llama_cpp
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_llama_cpp_computes_the_same_model_behind_the_same_context(family: str, tmp_path: Path) -> None:
    model = small(family, tmp_path / "model")
    noise = noise_for(model)
    llama = LlamaCpp(ENVIRONMENT, tmp_path, model, noise)
    found = agreement(model, llama, noise)
    assert found.correlation > 0.999
    assert found.correlation_without_context < 0.9, "the context is read"
    # And it is compared: noise of which 8 of 1,024 positions are missing is another context.
    tokens = [7, 8, 9]
    shorter = transformers_logits(model, noise[:, :, 8:], tokens)
    assert correlations(llama.logits(noise.shape[2], tokens), shorter).min() < LOWEST_CORRELATION


@needs_llama_cpp
@pytest.mark.parametrize("flash", [True, False])
def test_steps_are_timed_behind_contexts_that_repeat_the_noise(flash: bool, tmp_path: Path) -> None:
    model = small("llama", tmp_path / "model")
    llama = LlamaCpp(ENVIRONMENT, tmp_path, model, noise_for(model))
    with llama.steps(2500, 16, flash=flash) as step:
        seconds = [step() for _ in range(3)]
    assert all(second > 0 for second in seconds)
