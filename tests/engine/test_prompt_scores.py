"""Log-probabilities of a prompt: those of plain loops and of transformers, however it is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine import InvalidParameter, RetrievalParams, Scored, Token
from tests.engine.running import Request, Running, running
from tests.engine.test_generation import BLOCKS, EXACT, eager
from tests.models import LANDMARK, Bench, random_tokens

LENGTH = 300


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Iterator[Running]:
    with running(tiny_folder, **BLOCKS) as run:
        yield run


def scored(request: Request) -> list[Token]:
    return [token for event in request.events if isinstance(event, Scored) for token in event.tokens]


def agree(found: list[Token], prompt: list[int], logits: torch.Tensor) -> None:
    """`found` is what logits (tokens, vocabulary) tell, each row of the token after it."""
    assert [token.token for token in found] == prompt
    assert (found[0].logprob, found[0].top_logprobs) == (None, ())
    logprobs = logits.log_softmax(-1)[:-1]
    told = torch.tensor([token.logprob for token in found[1:]])
    torch.testing.assert_close(told, logprobs[range(len(prompt) - 1), prompt[1:]], atol=1e-4, rtol=1e-4)
    best = [[token for token, _ in each.top_logprobs] for each in found[1:]]
    assert best == logprobs.topk(2).indices.tolist()


def test_reading_everything_tells_what_transformers_tells(tiny: Running, tiny_folder: Path) -> None:
    prompt = random_tokens(LENGTH)
    with torch.inference_mode():
        logits = eager(tiny_folder)(torch.tensor([prompt])).logits[0]
    agree(scored(tiny.ask(prompt, prompt_logprobs=2, retrieval=EXACT, max_tokens=0)), prompt, logits)


@pytest.mark.parametrize("length", [1, 2, 6, 7, 8, 127, 128, 129, LENGTH])
def test_trained_landmarks_are_read_and_not_told(length: int, landmark_folder: Path) -> None:
    prompt, bench = random_tokens(length), Bench(landmark_folder, landmark_dtype="int4")
    logits = bench.logits(bench.session(), prompt, [length], fetch=3)
    logits[:, LANDMARK] = -torch.inf
    with running(landmark_folder) as run:
        agree(scored(run.ask(prompt, prompt_logprobs=2)), prompt, logits)


def test_how_it_is_read_makes_no_difference(tiny: Running) -> None:
    """Known before, with several answers, with provenance."""
    prompt = random_tokens(LENGTH, seed=9)
    first = tiny.ask(prompt, prompt_logprobs=2)
    again = tiny.ask(prompt, prompt_logprobs=2, n=2)
    assert (again.end_of(0).usage.cached_tokens, scored(again)) == (0, scored(first))
    assert again.tokens(1) == first.tokens() == tiny.ask(prompt).tokens()
    told = tiny.ask(prompt, prompt_logprobs=2, retrieval=RetrievalParams(provenance=True, audit=True))
    assert [token.token for token in scored(told)] == prompt


def test_in_small_steps_beside_others_it_tells_the_same(tiny_folder: Path) -> None:
    """Vectors in fp32, for rounding them is a step: between two of its values the last bit of a sum decides.

    No part of a prompt is as small as `step_tokens`, so how the prompt is cut does not depend on how long steps take.
    """
    prompt, exact = random_tokens(LENGTH, seed=9), BLOCKS | {"landmark_dtype": "float32"}
    with running(tiny_folder, **exact) as run:
        alone = scored(run.ask(prompt, prompt_logprobs=2))
    with running(tiny_folder, **exact, step_tokens=13) as run:
        others = [run.submit(random_tokens(40, seed=seed), max_tokens=60) for seed in range(1, 4)]
        beside = scored(run.ask(prompt, prompt_logprobs=2))
        assert max(report.prefill_tokens for report in run.gate.reports) == 13
        for other in others:
            other.result()
    assert [token.token for token in beside] == prompt
    for token, expected in zip(beside[1:], alone[1:], strict=True):
        assert token.logprob == pytest.approx(expected.logprob, abs=1e-4)


def test_a_session_s_past_has_no_scores(tiny: Running) -> None:
    session = tiny.engine.create_session("").id
    with pytest.raises(InvalidParameter, match="prompt_logprobs"):
        tiny.submit([7, 8], session=session, prompt_logprobs=0)
    tiny.engine.delete_session(session, "")
