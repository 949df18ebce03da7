"""An answer that must keep to a form: every draw does, whatever shifts it, and it ends when it is complete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import ConstraintFailed, Generation, SamplingParams
from tests.engine.running import Request, Running, running
from tests.models import LANDMARK, VOCABULARY, random_tokens

END = 2
FORM: list[set[int]] = [{20, 21, 22}, {30, 31}, {40}, {50, 51, 52, END}, {60, END}]
"""What may come at each place: four or five tokens, then the end."""


class Places:
    """A constraint that counts places; remembers what it was told."""

    def __init__(self, form: list[set[int]]) -> None:
        self._form = form
        self.accepted: list[int] = []

    @property
    def ended(self) -> bool:
        return len(self.accepted) >= len(self._form) or END in self.accepted

    def allowed(self) -> bytes:
        here = {END} if self.ended else self._form[len(self.accepted)]
        return bytes(token in here for token in range(VOCABULARY))

    def accept(self, token: int) -> None:
        assert self.ended or token in self._form[len(self.accepted)]
        self.accepted.append(token)


@pytest.fixture(scope="module")
def run(tiny_folder: Path) -> Iterator[Running]:
    with running(tiny_folder, max_running=8) as started:
        yield started


def ask(
    run: Running, form: list[set[int]] = FORM, n: int = 1, tokens: list[int] | None = None, **given: Any
) -> Request:
    params = SamplingParams(**{"max_tokens": 12, "temperature": 1.0, "seed": 1, **given})
    prompt = tuple(tokens or random_tokens(9))
    request = Request(Generation(f"constrained-{id(given)}", prompt, params, n=n, constraint=lambda: Places(form)))
    run.engine.submit(request.generation, request.deliver)
    return request.result()


def keeps(tokens: list[int], form: list[set[int]] = FORM) -> bool:
    return all(token in here for token, here in zip(tokens, [*form, {END}], strict=False))


@pytest.mark.parametrize(
    "shift",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_p": 0.01},
        {"min_p": 1.0},
        {"logit_bias": {7: 100.0, 20: -100.0, 21: -100.0, 22: -100.0}},
        {"repetition_penalty": 10.0, "presence_penalty": 2.0, "frequency_penalty": -2.0},
        {"logprobs": 4},
    ],
)
def test_every_token_is_one_that_may_come(run: Running, shift: dict[str, Any]) -> None:
    for seed in range(8):
        answer = ask(run, seed=seed, **shift)
        assert keeps(answer.tokens())
        assert answer.tokens()[-1] == END
        assert answer.end.reason == "stop"


def test_all_that_may_come_does(run: Running) -> None:
    first = {ask(run, seed=seed, temperature=2.0).tokens()[0] for seed in range(24)}
    assert first == FORM[0]


def test_each_choice_has_a_state_of_its_own(run: Running) -> None:
    answer = ask(run, n=6, temperature=2.0)
    drawn = [answer.tokens(index) for index in range(6)]
    assert all(map(keeps, drawn))
    assert len({tuple(tokens) for tokens in drawn}) > 1
    assert len({len(tokens) for tokens in drawn}) > 1, "they end at different places"


def test_a_seed_repeats_the_answer_also_from_the_prefix_cache(run: Running) -> None:
    prompt = random_tokens(70, seed=5)
    first, second = (ask(run, tokens=prompt, seed=3, temperature=2.0) for _ in range(2))
    assert second.end.usage.cached_tokens > 0
    assert first.tokens() == second.tokens()


def test_an_answer_that_is_cut_says_so(run: Running) -> None:
    answer = ask(run, max_tokens=2)
    assert keeps(answer.tokens())
    assert answer.end.reason == "length"


def test_a_complete_answer_without_room_for_its_end_token_is_not_cut(run: Running) -> None:
    form = [{20}, {30}]
    assert ask(run, form, max_tokens=2).end.reason == "stop"
    assert ask(run, form, max_tokens=3).tokens() == [20, 30, END]


def test_a_complete_answer_ends_also_where_end_tokens_are_ignored(run: Running) -> None:
    answer = ask(run, [{20}, {30}], ignore_eos=True)
    assert answer.tokens() == [20, 30]
    assert answer.end.reason == "stop"


def test_log_probabilities_are_told_over_all_tokens(run: Running) -> None:
    """As the model has them: what may not come keeps its share."""
    free = run.ask(random_tokens(9), max_tokens=1, logprobs=5)
    bound = ask(run, [{20}], logprobs=5)
    token = bound.drawn()[0]
    assert token.top_logprobs == free.drawn()[0].top_logprobs
    assert token.token == 20
    assert token.logprob is not None
    assert token.logprob < 0


def test_where_nothing_may_come_the_answer_fails_and_the_engine_goes_on(run: Running) -> None:
    with pytest.raises(ConstraintFailed, match="no token"):
        ask(run, [{20}, set()])
    assert ask(run).end.reason == "stop"


def test_a_constraint_that_fails_fails_its_answer_alone(run: Running) -> None:
    class Broken(Places):
        def allowed(self) -> bytes:
            raise ConstraintFailed("too complex")

    request = Request(Generation("broken", tuple(random_tokens(5)), constraint=lambda: Broken(FORM)))
    run.engine.submit(request.generation, request.deliver)
    with pytest.raises(ConstraintFailed, match=r"^too complex"):
        request.result()
    assert ask(run).end.reason == "stop"


def test_a_landmark_never_comes(landmark_folder: Path) -> None:
    with running(landmark_folder) as started:
        answer = ask(started, [{LANDMARK, 20}, {LANDMARK, 21}], temperature=2.0, logit_bias={LANDMARK: 100.0})
        assert answer.tokens() == [20, 21, END]
