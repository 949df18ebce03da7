"""Each landmark rule against its definition, computed key by key."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache import RULES, LandmarkRule

BLOCKS, SIZE, DIM = 5, 8, 12


def random(*shape: int, seed: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def score(rule: LandmarkRule, query: Tensor, keys: Tensor) -> Tensor:
    """Scores (blocks,) of one query (dim,) for blocks of keys (blocks, size, dim), as the index takes them."""
    return rule.summarise(keys) @ rule.encode(query)


def by_hand(name: str, query: list[float], keys: list[list[float]]) -> float:
    """A block's score from the rule's published formula, one number at a time."""
    channels = list(zip(*keys, strict=True))
    if name == "trained":
        return sum(q * k for q, k in zip(query, keys[-1], strict=True))
    if name == "mean":
        return sum(sum(q * k for q, k in zip(query, key, strict=True)) for key in keys) / len(keys)
    if name == "box":
        return sum(max(q * min(c), q * max(c)) for q, c in zip(query, channels, strict=True))
    total = 0.0
    for q, channel in zip(query, channels, strict=True):
        centre = sum(channel) / len(channel)
        radius = sum(abs(value - centre) for value in channel) / len(channel)
        total += q * centre + abs(q) * radius
    return total


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_scores_are_those_of_the_definition(name: str, seed: int) -> None:
    keys, query = random(BLOCKS, SIZE, DIM, seed=seed), random(DIM, seed=seed + 10)
    expected = torch.tensor([by_hand(name, query.tolist(), block) for block in keys.tolist()])
    torch.testing.assert_close(score(RULES[name], query, keys), expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_a_box_bounds_every_key_of_its_block(seed: int) -> None:
    keys, query = random(BLOCKS, SIZE, DIM, seed=seed), random(DIM, seed=seed + 1)
    assert (score(RULES["box"], query, keys) >= (keys @ query).amax(-1) - 1e-4).all()


@pytest.mark.parametrize("name", RULES)
def test_a_block_of_one_repeated_key_scores_as_that_key(name: str) -> None:
    key, query = random(DIM, seed=4), random(DIM, seed=5)
    torch.testing.assert_close(score(RULES[name], query, key.expand(1, SIZE, DIM))[0], key @ query)


@pytest.mark.parametrize("name", RULES)
def test_shapes_are_as_announced_with_any_leading_dimensions(name: str) -> None:
    rule = RULES[name]
    assert rule.name == name
    assert rule.summarise(random(3, BLOCKS, SIZE, DIM, seed=6)).shape == (3, BLOCKS, rule.width(DIM))
    assert rule.encode(random(3, 7, 2, DIM, seed=7)).shape == (3, 7, 2, rule.width(DIM))


@pytest.mark.parametrize("name", ["mean", "box-mean"])
def test_means_of_half_precision_keys_are_taken_in_full_precision(name: str) -> None:
    """A sum of 1024 keys near 1 would lose all that tells them apart in bfloat16."""
    keys = (1 + random(1, 1024, DIM, seed=8) / 100).bfloat16()
    summary = RULES[name].summarise(keys)
    torch.testing.assert_close(summary[0, :DIM], keys[0].double().mean(0).float(), atol=1e-5, rtol=1e-5)
