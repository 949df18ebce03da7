"""Drawing a token: which tokens may come, how often, and what is told about them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine import SamplingParams, Token
from engine.sampler import Sampler

LOGITS = torch.tensor([2.0, -1.0, 3.0, 0.5, 1.0, -3.0])
DRAWS = 400


def sampler(index: int = 0, hidden: list[int] | None = None, **params: Any) -> Sampler:
    return Sampler(SamplingParams(**{"seed": 1, **params}), index, hidden or [])


def draws(logits: Tensor = LOGITS, count: int = DRAWS, hidden: list[int] | None = None, **params: Any) -> list[int]:
    drawn = sampler(hidden=hidden, **params)
    return [drawn.sample(logits, [], []).token for _ in range(count)]


def greedy(logits: Tensor, prompt: list[int], generated: list[int], **params: Any) -> int:
    return sampler(temperature=0.0, **params).sample(logits, prompt, generated).token


def follows(drawn: list[int], expected: Tensor) -> None:
    """Frequencies are within five deviations of the probabilities (vocabulary,); what is impossible never comes."""
    counts = Counter(drawn)
    for token, p in enumerate(expected.tolist()):
        deviation = math.sqrt(max(p * (1 - p), 0.0) / len(drawn))
        assert abs(counts[token] / len(drawn) - p) <= 5 * deviation + 1e-6, (token, counts)


# -- greedy and random ---------------------------------------------------------------------------------------


def test_without_temperature_the_most_likely_token_is_taken() -> None:
    assert set(draws(temperature=0.0, seed=None)) == {2}


def test_draws_follow_the_probabilities() -> None:
    follows(draws(count=4000), LOGITS.softmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_and_flattens(temperature: float) -> None:
    follows(draws(count=4000, temperature=temperature), (LOGITS / temperature).softmax(-1))


@pytest.mark.parametrize("temperature", [1e-2, 1e-6, 1e-30, 1e-45, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    """Also where the quotient would be infinite."""
    assert set(draws(100 * LOGITS, 20, temperature=temperature)) == {2}


def test_the_given_logits_are_left_alone() -> None:
    logits = LOGITS.clone()
    params: dict[str, Any] = {
        "repetition_penalty": 2.0,
        "frequency_penalty": 1.0,
        "logit_bias": {1: 5.0},
        "top_k": 2,
        "logprobs": 1,
    }
    sampler(hidden=[2], **params).sample(logits, [0], [1])
    assert torch.equal(logits, LOGITS)


# -- seeds ---------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_tokens_again() -> None:
    assert draws(seed=7) == draws(seed=7)
    assert draws(seed=7) != draws(seed=8)
    assert draws(seed=None) != draws(seed=None)


@pytest.mark.parametrize("seed", [0, -1, -(1 << 63), (1 << 63) - 1])
def test_every_64_bit_seed_is_taken(seed: int) -> None:
    assert draws(count=20, seed=seed) == draws(count=20, seed=seed)


def test_choices_draw_from_the_following_seeds() -> None:
    def choice(index: int, seed: int) -> list[int]:
        drawn = sampler(index, seed=seed)
        return [drawn.sample(LOGITS, [], []).token for _ in range(50)]

    assert choice(2, seed=7) == choice(0, seed=9)
    assert choice(1, seed=7) != choice(0, seed=7)
    assert sampler(2).sample(LOGITS, [], []).index == 2


def test_samplers_do_not_disturb_each_other() -> None:
    first, second = sampler(seed=3), sampler(seed=4)
    mixed = [(first.sample(LOGITS, [], []).token, second.sample(LOGITS, [], []).token) for _ in range(50)]
    assert [list(tokens) for tokens in zip(*mixed, strict=True)] == [draws(count=50, seed=s) for s in (3, 4)]


# -- narrowing -----------------------------------------------------------------------------------------------


def allowed(logits: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> set[int]:
    """The tokens that may come, one by one from the definitions; min-p and top-k, then top-p over what is left."""
    p = logits.double().softmax(-1).tolist()
    order = sorted(range(len(p)), key=lambda token: -p[token])
    left = [token for token in order if p[token] >= min_p * max(p)][: top_k or None]
    whole, covered, nucleus = sum(p[token] for token in left), 0.0, set()
    for token in left:
        if covered / whole >= top_p:
            break
        nucleus.add(token)
        covered += p[token]
    return nucleus


@pytest.mark.parametrize(("params", "expected"), [
    ({"top_k": 1}, {2}),
    ({"top_k": 3}, {2, 0, 4}),
    ({"top_k": 6}, {0, 1, 2, 3, 4, 5}),
    ({"top_k": 1000}, {0, 1, 2, 3, 4, 5}),
    ({"top_p": 1e-9}, {2}),
    ({"top_p": 5e-324}, {2}),  # 0 in 32 bits
    ({"top_p": 0.60}, {2}),  # token 2 has 0.623
    ({"top_p": 0.65}, {2, 0}),  # and token 0 has 0.229
    ({"top_p": 0.86}, {2, 0, 4}),
    ({"min_p": 1.0}, {2}),
    ({"min_p": 0.36}, {2, 0}),  # token 0 is e^-1 = 0.368 times as likely as token 2
    ({"min_p": 0.37}, {2}),
    ({"top_k": 2, "top_p": 0.74}, {2, 0}),  # of two tokens, token 2 has 0.731
    ({"top_k": 2, "top_p": 0.72}, {2}),
])  # fmt: skip
def test_exactly_the_right_tokens_are_left(params: dict[str, Any], expected: set[int]) -> None:
    assert allowed(LOGITS, **params) == expected
    drawn = draws(count=3000, **params)
    assert set(drawn) == expected
    follows(drawn, LOGITS.masked_fill(~torch.tensor([t in expected for t in range(6)]), -torch.inf).softmax(-1))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.01, 1.0),
    min_p=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
)
def test_what_is_left_agrees_with_the_definitions(seed: int, top_k: int, top_p: float, min_p: float) -> None:
    logits = 2 * torch.randn(10, generator=torch.Generator().manual_seed(seed))
    shares = sampler(top_k=top_k, top_p=top_p, min_p=min_p)._narrow(logits.softmax(-1))
    assert set(shares.nonzero().flatten().tolist()) == allowed(logits, top_k, top_p, min_p)


# -- penalties and bias --------------------------------------------------------------------------------------


def adjusted(prompt: list[int], generated: list[int], **params: Any) -> list[float]:
    """Logits after bias and penalties, of which the next token is drawn."""
    drawn = sampler(**params)
    return drawn._penalise(drawn._bias(LOGITS.clone()), prompt, generated).tolist()


def test_the_repetition_penalty_shrinks_what_was_seen() -> None:
    """Positive logits are divided, negative ones multiplied; seen twice counts once; the prompt counts."""
    assert adjusted([0, 0, 5], [1], repetition_penalty=2.0) == [1.0, -2.0, 3.0, 0.5, 1.0, -6.0]
    assert adjusted([], [2], repetition_penalty=0.5) == [2.0, -1.0, 6.0, 0.5, 1.0, -3.0]


def test_presence_and_frequency_penalties_count_what_was_generated() -> None:
    assert adjusted([2, 3], [0, 0, 5], presence_penalty=0.5) == [1.5, -1.0, 3.0, 0.5, 1.0, -3.5]
    assert adjusted([2, 3], [0, 0, 5], frequency_penalty=0.5) == [1.0, -1.0, 3.0, 0.5, 1.0, -3.5]
    assert adjusted([], [0, 0], presence_penalty=1.0, frequency_penalty=-1.0)[0] == 2.0 - 1.0 + 2.0
    assert adjusted([2], [], presence_penalty=2.0, frequency_penalty=2.0) == LOGITS.tolist()


def test_penalties_change_what_is_drawn() -> None:
    assert greedy(LOGITS, [], [2]) == 2
    assert greedy(LOGITS, [], [2], presence_penalty=1.5) == 0
    assert greedy(LOGITS, [], [2, 2], frequency_penalty=0.75) == 0
    assert greedy(LOGITS, [2], [], repetition_penalty=2.0) == 0


def test_a_bias_is_added_to_its_token() -> None:
    assert adjusted([], [], logit_bias={1: 4.5, 2: -1.0}) == [2.0, 3.5, 2.0, 0.5, 1.0, -3.0]
    assert greedy(LOGITS, [], [], logit_bias={5: 100.0}) == 5
    assert greedy(LOGITS, [], [], logit_bias={2: -100.0}) == 0


# -- hidden tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [
    {"temperature": 0.0},
    {"temperature": 2.0},
    {"temperature": 2.0, "logit_bias": {2: 100.0}},
    {"temperature": 0.0, "logit_bias": {2: 100.0}},
    {"top_k": 1},
    {"min_p": 1.0},
])  # fmt: skip
def test_a_hidden_token_is_never_drawn(params: dict[str, Any]) -> None:
    assert 2 not in draws(hidden=[2], **params)


# -- log-probabilities ---------------------------------------------------------------------------------------


def told(logprobs: int | None, hidden: list[int] | None = None, **params: Any) -> Token:
    return sampler(hidden=hidden, logprobs=logprobs, **params).sample(LOGITS, [2, 0], [2])


def test_log_probabilities_are_the_models_own() -> None:
    """Before temperature, bias, penalties and narrowing."""
    params: dict[str, Any] = {
        "temperature": 2.0,
        "top_k": 1,
        "repetition_penalty": 5.0,
        "logit_bias": {0: 3.0, 5: 50.0},
    }
    token = told(3, **params)
    expected = LOGITS.log_softmax(-1)
    assert token.token == 5
    assert token.logprob == pytest.approx(float(expected[5]))
    assert [t for t, _ in token.top_logprobs] == [2, 0, 4]
    assert [p for _, p in token.top_logprobs] == pytest.approx(expected[[2, 0, 4]].tolist())


def test_log_probabilities_are_told_only_if_asked_for() -> None:
    assert told(None) == Token(0, told(0).token)
    assert told(0).logprob is not None
    assert told(0).top_logprobs == ()


def test_a_hidden_token_has_no_share_in_the_log_probabilities() -> None:
    token = told(5, hidden=[2], temperature=0.0)
    assert token.token == 0
    assert 2 not in [t for t, _ in token.top_logprobs]
    assert sum(math.exp(p) for _, p in token.top_logprobs) == pytest.approx(1.0, abs=1e-5)
