"""Trained landmarks: training's dense attention and the engine's retrieval compute the same function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.models import LANDMARK, Bench, random_tokens
from training import attention
from training.attention import LandmarkSettings


def training_logits(folder: Path, slots: list[int], fetch: int) -> torch.Tensor:
    """Logits (positions, vocabulary) of the attention that training differentiates."""
    attention.register()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention.NAME, dtype="float32").eval()
    settings = LandmarkSettings(block_size=8, recent_blocks=2, sink_blocks=1, blocks_per_head=fetch)
    tokens = torch.tensor([slots])
    inv_freq = model.model.rotary_emb.inv_freq
    with torch.no_grad():
        inputs = {"position_ids": torch.zeros_like(tokens), "inv_freq": inv_freq, "landmarks": settings}
        return model(tokens, use_cache=False, **inputs).logits[0]


@pytest.mark.parametrize("fetch", [3, 100])
def test_training_and_retrieval_agree(landmark_folder: Path, fetch: int) -> None:
    text = random_tokens(7 * 22)
    slots = [token for i in range(0, len(text), 7) for token in (*text[i : i + 7], LANDMARK)]
    expected = training_logits(landmark_folder, slots, fetch)
    bench = Bench(landmark_folder, landmark_dtype="float32")
    logits = bench.logits(bench.session(), text, [50, 1, 33, 70], fetch=fetch)
    predicting = [i for i in range(len(slots)) if i + 1 == len(slots) or slots[i + 1] != LANDMARK]
    torch.testing.assert_close(logits, expected[predicting], atol=1e-4, rtol=1e-4)


def test_weights_of_the_grouped_softmax_sum_to_one() -> None:
    settings = LandmarkSettings(block_size=4, recent_blocks=1, sink_blocks=1, blocks_per_head=1)
    weights = attention.grouped_softmax(3 * torch.randn(1, 2, 24, 24), settings, tied=False)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 24))
    assert not weights[..., 3::4].any()  # landmarks get nothing
    assert not weights.triu(1).any()  # nothing looks ahead


def test_a_far_block_gets_its_landmarks_share() -> None:
    """One query, two blocks, by hand: the paper's definition against the bias that computes it."""
    settings = LandmarkSettings(block_size=3, recent_blocks=1, sink_blocks=0, blocks_per_head=1)
    scores = torch.tensor([0.5, -1.0, 2.0, 0.3, 0.7, 9.0])  # block 0: two tokens and its landmark; block 1: own
    weights = attention.grouped_softmax(scores.expand(1, 1, 6, 6), settings, tied=False)[0, 0, 4]
    group = torch.tensor([2.0, 0.3, 0.7]).softmax(0)  # landmark of block 0, and the local tokens
    within = torch.tensor([0.5, -1.0]).softmax(0)
    expected = torch.cat((group[0] * within, torch.zeros(1), group[1:], torch.zeros(1)))
    torch.testing.assert_close(weights, expected)
