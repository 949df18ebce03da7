"""The CPU kernels compute what the reference computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models import Bench, random_tokens

FREE = {"block_size": 8, "recent_blocks": 2, "positions": "bounded"}


@pytest.mark.parametrize("cuts", [[260], [100] + [1] * 60 + [100]])
@pytest.mark.parametrize("fetch", [1, 4])
@pytest.mark.parametrize("kind", ["trained", "mean", "box"])
def test_fused_attention_equals_the_reference(
    kind: str, fetch: int, cuts: list[int], tiny_folder: Path, landmark_folder: Path
) -> None:
    """Grouped heads too: the model without landmarks has two query heads for each KV head."""
    folder, config = (landmark_folder, {}) if kind == "trained" else (tiny_folder, {**FREE, "landmarks": kind})
    logits = []
    for fused in (False, True):
        bench = Bench(folder, fused=fused, **config)
        logits.append(bench.logits(bench.session(), random_tokens(260), cuts, fetch))
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)
