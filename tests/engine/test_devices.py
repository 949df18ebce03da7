"""On another device than the CPU everything means the same, and nothing is left behind on the CPU.

There is no GPU where these run: a pretended one refuses what a real one would (tests/pretended.py). The last test wants
a real one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cache.packed import Packed
from engine import Span, Step
from engine.audit import Audit
from engine.tally import Tally
from tests.models import Bench, random_tokens, save_model
from tests.pretended import CARD, Card, Mixed, Pretended

SETTINGS: dict[str, dict[str, Any]] = {
    "moments": {},
    "bounded": {"positions": "bounded"},
    "box-mean": {"landmarks": "box-mean", "landmarks_per_block": 2},
    "clusters": {"landmarks": "clusters", "landmarks_per_block": 2, "estimate_rest": True},
    "performer": {"landmarks": "performer"},
    "lsh": {"landmarks": "lsh"},
    "random": {"landmarks": "random"},
    "outliers": {"landmarks": "mean", "outlier_blocks": 2},
    "top-p": {"retrieval_top_p": 0.8},
    "dense": {"dense_layers": 1, "rest_slopes": False},
}
SMALL: dict[str, Any] = {"block_size": 4, "recent_blocks": 2, "blocks_per_head": 3}
CUTS = [50, 1, 30, 1, 1]


def run(bench: Bench, *, fetch: int = 3) -> tuple[Tensor, dict[str, Any], list[float]]:
    """Logits of a text that is read in pieces, and what is told of its last token."""
    session = bench.session()
    logits = bench.logits(session, random_tokens(sum(CUTS)), CUTS, fetch)
    session.append([9])
    span = bench.span(session, len(session.tokens), fetch)
    tally, audit = Tally(), Audit(1.0)
    span = Span(*(session, span.start, span.end, span.token_ids, fetch), tally, bench.settings.top_p, 1.0, audit)
    last = bench.runner.run(Step([span]))
    return torch.cat((logits, last)), vars(tally), audit.masses


def close(found: Tensor, expected: Tensor) -> None:
    """Sums depend a little on where in memory numbers lie."""
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_pretended_card_refuses_what_a_real_one_would() -> None:
    with Card():
        there, here = torch.arange(6.0, device="cuda").view(2, 3), torch.ones(2, 3)
        assert there.device == CARD
        assert (there + 1).sum().item() == 21
        assert type(there.cpu()) is Tensor
        assert torch.equal(here.to(there.device).cpu(), here)
        there[0] = 7
        assert there[:, 1].tolist() == [7, 4]
        mixed: list[Callable[[], Tensor]] = [
            lambda: there + here,
            lambda: there[torch.tensor([0])],
            lambda: torch.cat((here, there)),
        ]
        for mix in mixed:
            with pytest.raises(Mixed):
                mix()
        for hidden in (there.numpy, there.data_ptr):
            with pytest.raises(TypeError):
                hidden()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_device_computes_what_the_cpu_does(tiny_folder: Path, settings: dict[str, Any]) -> None:
    settings = {**SMALL, **settings}
    expected, tally, audit = run(Bench(tiny_folder, **settings))
    with Card():
        bench = Bench(tiny_folder, device=CARD, **settings)
        assert isinstance(bench.model.model.get_input_embeddings().weight, Pretended)
        found, there, audited = run(bench)
    assert type(found) is Tensor, "tokens are drawn on the CPU"
    close(found, expected)
    assert there.pop("blocks") == pytest.approx(dict(tally.pop("blocks")), abs=1e-4)
    assert there == pytest.approx(tally, abs=1e-4)
    assert audited == pytest.approx(audit, abs=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gpt_neox", "ministral3", "smollm3"])
def test_every_kind_of_layer_runs_on_a_device(tmp_path: Path, family: str) -> None:
    folder = save_model(family, tmp_path / family)
    expected, *_ = run(Bench(folder, **SMALL))
    with Card():
        found, *_ = run(Bench(folder, device=CARD, **SMALL))
    close(found, expected)


def test_trained_landmarks_on_a_device(landmark_folder: Path) -> None:
    expected, *_ = run(Bench(landmark_folder))
    with Card():
        found, *_ = run(Bench(landmark_folder, device=CARD))
    close(found, expected)


def test_an_index_in_four_bits_on_a_device(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the CPU's kernels, which round queries, too; tests/cache/test_vectors.py compares with these."""
    monkeypatch.setattr("cache.index.ByRow", Packed)
    monkeypatch.setattr("cache.index.ByChannel", Packed)
    settings = {**SMALL, "landmark_dtype": "int4"}
    expected, *_ = run(Bench(tiny_folder, **settings))
    with Card():
        found, *_ = run(Bench(tiny_folder, device=CARD, **settings))
    close(found, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_real_card(tiny_folder: Path) -> None:
    expected, *_ = run(Bench(tiny_folder, **SMALL))
    found, *_ = run(Bench(tiny_folder, device=torch.device("cuda"), **SMALL))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
