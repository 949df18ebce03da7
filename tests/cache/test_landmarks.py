"""Each landmark rule against its definition, computed key by key."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache import RULES, LandmarkRule, outlying

BLOCKS, SIZE, DIM = 5, 8, 12
BY_HAND = ("trained", "mean", "box", "box-mean", "moments")


def random(*shape: int, seed: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def score(rule: LandmarkRule, query: Tensor, keys: Tensor) -> Tensor:
    """Scores (blocks,) of one query (dim,) for blocks of keys (blocks, size, dim), as the index takes them."""
    return rule.judge(products(rule, rule.summarise(keys), rule.encode(query)), keys.shape[-2])[0]


def products(rule: LandmarkRule, landmarks: Tensor, looking: Tensor) -> Tensor:
    """A query's product with each part of landmarks (…, width): (…, parts)."""
    widths = rule.widths(DIM)
    parts = zip(landmarks.split(widths, -1), looking.split(widths, -1), strict=True)
    return torch.stack([landmark @ look for landmark, look in parts], -1)


def by_hand(name: str, query: list[float], keys: list[list[float]]) -> float:
    """A block's score from the rule's published formula, one number at a time."""
    channels = list(zip(*keys, strict=True))
    if name == "trained":
        return sum(q * k for q, k in zip(query, keys[-1], strict=True))
    if name == "mean":
        return sum(sum(q * k for q, k in zip(query, key, strict=True)) for key in keys) / len(keys)
    if name == "box":
        return sum(max(q * min(c), q * max(c)) for q, c in zip(query, channels, strict=True))
    if name == "moments":
        means = [sum(channel) / len(channel) for channel in channels]
        spreads = [sum((x - m) ** 2 for x in c) / len(c) for c, m in zip(channels, means, strict=True)]
        centre = sum(q * m for q, m in zip(query, means, strict=True))
        deviation = math.sqrt(sum(q * q * v for q, v in zip(query, spreads, strict=True)))
        return centre + 1.4342 * deviation  # where Blom expects the largest of 8 (exactly, it is 1.4236)
    assert name == "box-mean"
    total = 0.0
    for q, channel in zip(query, channels, strict=True):
        centre = sum(channel) / len(channel)
        radius = sum(abs(value - centre) for value in channel) / len(channel)
        total += q * centre + abs(q) * radius
    return total


@pytest.mark.parametrize("name", BY_HAND)
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


@pytest.mark.parametrize("name", [*BY_HAND, "combiner"])
def test_a_block_of_one_repeated_key_scores_as_that_key(name: str) -> None:
    key, query = random(DIM, seed=4), random(DIM, seed=5)
    torch.testing.assert_close(score(RULES[name], query, key.expand(1, SIZE, DIM))[0], key @ query)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_shapes_are_as_announced(name: str, count: int) -> None:
    rule = RULES[name]
    assert rule.name == name
    landmarks = rule.landmarks(random(3, BLOCKS, SIZE, DIM, seed=6), 7, count)
    looking = rule.look(random(3, 9, 2, DIM, seed=7), torch.arange(9))
    assert landmarks.shape == (3, BLOCKS, count, sum(rule.widths(DIM)))
    assert looking.shape == (3, 9, 2, sum(rule.widths(DIM)))
    assert landmarks.isfinite().all()
    told = products(rule, landmarks[0], looking[0, 0, 0])
    assert all(said.shape == (BLOCKS, count) for said in rule.judge(told, SIZE // count))
    assert rule.join(random(3, 9, 2, BLOCKS, count, seed=8)).shape == (3, 9, 2, BLOCKS)


# -- several landmarks, and masses ---------------------------------------------------------------------------


def log_mass(rule: LandmarkRule, query: Tensor, keys: Tensor, count: int) -> Tensor:
    """A rule's estimate of log Σ exp(q · key) for blocks of keys (blocks, size, dim): (blocks,)."""
    landmarks = rule.landmarks(keys[None], 0, count)[0]  # (blocks, count, width)
    looking = rule.look(query[None, None, None], torch.zeros(1, dtype=torch.long))[0, 0, 0]
    size = keys.shape[1]
    return rule.log_mass(rule.join(rule.judge(products(rule, landmarks, looking), size // count)[1]), size)


def test_a_block_is_as_good_as_the_best_of_its_boxes() -> None:
    keys, query = random(BLOCKS, SIZE, DIM, seed=1), random(DIM, seed=2)
    box = RULES["box"]
    parts = torch.stack([score(box, query, half) for half in keys.chunk(2, dim=1)], -1)
    scores = box.landmarks(keys[None], 0, 2)[0] @ box.encode(query)
    torch.testing.assert_close(box.join(scores), parts.amax(-1))


@pytest.mark.parametrize("name", ["mean", "box-mean", "moments", "clusters"])
def test_one_landmark_for_each_key_gives_the_exact_mass(name: str) -> None:
    keys, query = random(BLOCKS, SIZE, DIM, seed=3), random(DIM, seed=4) / 4
    expected = (keys @ query).logsumexp(-1)
    torch.testing.assert_close(log_mass(RULES[name], query, keys, SIZE), expected, atol=1e-3, rtol=1e-4)


def test_clusters_find_keys_that_belong_together_wherever_they_stand() -> None:
    centres = random(2, DIM, seed=5)
    keys = centres[torch.tensor([0, 1, 1, 0, 1, 1, 1, 0])][None]
    query = random(DIM, seed=6) / 4
    expected = (keys @ query).logsumexp(-1)
    torch.testing.assert_close(log_mass(RULES["clusters"], query, keys, 2), expected, atol=1e-4, rtol=1e-4)
    assert not torch.isclose(log_mass(RULES["mean"], query, keys, 2), expected, atol=1e-2).any()


def test_an_empty_cluster_weighs_nothing() -> None:
    key, query = random(DIM, seed=7), random(DIM, seed=8) / 4
    mass = log_mass(RULES["clusters"], query, key.expand(1, SIZE, DIM), 4)
    torch.testing.assert_close(mass[0], key @ query + math.log(SIZE), atol=1e-4, rtol=1e-4)


def test_moments_know_the_mass_of_normally_scattered_keys() -> None:
    keys = random(1, 20_000, DIM, seed=9) * 0.4 + random(DIM, seed=10)
    query = random(DIM, seed=11) / 6
    torch.testing.assert_close(
        log_mass(RULES["moments"], query, keys, 1), (keys @ query).logsumexp(-1), atol=0.02, rtol=0
    )


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 2.0])
def test_moments_know_the_best_and_the_mass_of_a_block_however_its_keys_scatter(scale: float) -> None:
    """On the average over many blocks: from nearly equal scores to one that outweighs all others."""
    keys = random(4000, SIZE, DIM, seed=17)  # of standard deviation 2
    query = random(DIM, seed=18)
    query = query * scale / (2 * query.norm())  # scores of standard deviation `scale`
    spread = math.sqrt((SIZE - 1) / SIZE)  # variances within a block are that much smaller
    mass, best = log_mass(RULES["moments"], query, keys, 1), score(RULES["moments"], query, keys)
    assert float((mass - (keys @ query).logsumexp(-1)).mean()) == pytest.approx(0, abs=0.06 * scale)
    assert float((best - (keys @ query).amax(-1)).mean()) == pytest.approx(0, abs=(1.05 - spread) * 1.4 * scale)


def test_random_features_follow_the_mass() -> None:
    """Short vectors: the error grows with exp(|q + k|²). All blocks share a query's features, so also its error."""
    keys = random(400, SIZE, DIM, seed=12) / 4
    query = random(DIM, seed=13) / 16
    exact, estimate = (keys @ query).logsumexp(-1), log_mass(RULES["performer"], query, keys, 1)
    assert float(torch.corrcoef(torch.stack((exact, estimate)))[0, 1]) > 0.7
    assert float((estimate - exact).mean().abs()) < 0.2


# -- rules to compare with -----------------------------------------------------------------------------------


def placed_scores(name: str, own: int, blocks: int) -> Tensor:
    """Scores (blocks,) of a query that stands in block `own`."""
    rule = RULES[name]
    landmarks = rule.landmarks(torch.zeros(1, blocks, SIZE, DIM), 0, 1)[0, :, 0]
    return landmarks @ rule.look(torch.zeros(1, 1, 1, DIM), torch.tensor([own]))[0, 0, 0]


@pytest.mark.parametrize("own", [40, 41, 1003])
def test_the_dilated_window_takes_every_fourth_block_back(own: int) -> None:
    best = placed_scores("dilated", own, own).topk(5).indices
    assert best.tolist() == [own - 4, own - 8, own - 12, own - 16, own - 20]


def test_random_blocks_are_drawn_anew_for_each_block_and_evenly() -> None:
    drawn = [placed_scores("random", own, 200).topk(4).indices for own in range(200, 500)]
    counts = torch.cat(drawn).bincount(minlength=200)
    assert torch.equal(drawn[0], placed_scores("random", 200, 200).topk(4).indices)
    assert (counts > 0).sum() > 190, "1,200 draws reach nearly all of 200 blocks"
    assert counts.max() < 25


def test_hashing_counts_the_keys_in_the_query_s_buckets() -> None:
    keys, query = random(BLOCKS, SIZE, DIM, seed=14), random(DIM, seed=15)
    planted = keys.clone()
    planted[3, 2] = 5 * query  # hashes look at directions alone
    rule = RULES["lsh"]
    before, after = score(rule, query, keys), score(rule, query, planted)
    same = sum(float((rule.encode(key) * rule.encode(query)).sum()) for key in keys[1])
    assert float(before[1]) == same
    assert float(score(rule, query, query.expand(1, SIZE, DIM))[0]) == 4 * SIZE
    assert after[3] > before[3]


def test_outlying_blocks_are_those_with_a_key_unlike_their_mean() -> None:
    keys = torch.ones(3, SIZE, DIM) + random(3, SIZE, DIM, seed=16) / 100
    keys[1, 4] = -keys[1, 4]
    measure = outlying(keys)
    assert int(measure.argmax()) == 1
    assert float(measure[1]) == pytest.approx(2, abs=0.01)
    assert float(measure[0]) < 0.01


@pytest.mark.parametrize("name", ["mean", "box-mean"])
def test_means_of_half_precision_keys_are_taken_in_full_precision(name: str) -> None:
    """A sum of 1024 keys near 1 would lose all that tells them apart in bfloat16."""
    keys = (1 + random(1, 1024, DIM, seed=8) / 100).bfloat16()
    summary = RULES[name].summarise(keys)
    torch.testing.assert_close(summary[0, :DIM], keys[0].double().mean(0).float(), atol=1e-5, rtol=1e-5)
