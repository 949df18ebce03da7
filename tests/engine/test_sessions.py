"""Sessions, forks and shared prefixes: less is computed, and the answer is that of one long prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import EmptyPrompt, Finished, InvalidParameter, RetrievalParams, SessionBusy, SessionNotFound
from tests.engine.running import Running, running
from tests.models import random_tokens

FIRST, SECOND, THIRD = (random_tokens(length, seed=length) for length in (90, 33, 50))
KINDS: dict[str, dict[str, Any]] = {
    "trained": {},
    "absolute": {"block_size": 8, "recent_blocks": 2, "blocks_per_head": 3},
    "bounded": {"block_size": 8, "recent_blocks": 2, "blocks_per_head": 3, "positions": "bounded"},
}


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest, tiny_folder: Path, landmark_folder: Path) -> Iterator[Running]:
    """An engine that shares prefixes, of models with trained landmarks and without."""
    folder = landmark_folder if request.param == "trained" else tiny_folder
    with running(folder, **KINDS[request.param], step_tokens=50) as started:
        yield started


@pytest.fixture
def alone(run: Running, tiny_folder: Path, landmark_folder: Path) -> Iterator[Running]:
    """The same engine, sharing nothing."""
    trained = run.engine.description.landmark_token_id is not None
    folder = landmark_folder if trained else tiny_folder
    blocks = {} if trained else {**KINDS["absolute"], "positions": run.engine.description.retrieval.positions}
    with running(folder, **blocks, prefix_cache=False) as started:
        yield started


def text_per_block(run: Running) -> int:
    description = run.engine.description
    return description.block_size - (description.landmark_token_id is not None)


def computed(run: Running) -> int:
    """Text tokens that steps computed since the last look."""
    total = sum(report.prefill_tokens + report.decode_tokens for report in run.gate.reports)
    run.gate.reports.clear()
    return total


# -- turns ---------------------------------------------------------------------------------------------------


def test_turns_give_what_one_long_prompt_gives(run: Running, alone: Running) -> None:
    session = run.engine.create_session("")
    assert session.tokens == 0
    run.ask(FIRST, session=session.id, max_tokens=0)
    assert computed(run) == len(FIRST)
    second = run.ask(SECOND, session=session.id, max_tokens=10)
    assert second.tokens() == alone.ask(FIRST + SECOND, max_tokens=10).tokens()
    usage = second.end.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (123, 90, 10)
    assert computed(run) == len(SECOND) + 9  # the last token of the answer is not computed yet
    text = FIRST + SECOND + second.tokens()
    assert run.engine.session_tokens(session.id, "") == text
    third = run.ask(THIRD, session=session.id, max_tokens=10)
    assert third.tokens() == alone.ask(text + THIRD, max_tokens=10).tokens()
    assert third.end.usage.cached_tokens == len(text) - 1
    assert computed(run) == 1 + len(THIRD) + 9


def test_a_session_goes_on_without_new_tokens(run: Running, alone: Running) -> None:
    """After an answer was cut off, no token given means: go on."""
    session = run.engine.create_session("").id
    first = run.ask(FIRST, session=session, max_tokens=5).tokens()
    second = run.ask([], session=session, max_tokens=5).tokens()
    assert first + second == alone.ask(FIRST, max_tokens=10).tokens()


@pytest.mark.parametrize("length", [20, 21, 24])
def test_a_session_that_is_read_to_its_end_needs_a_token_to_answer(run: Running, length: int) -> None:
    """There are no logits of the last token any more, and at once is better than a failed step."""
    session = run.engine.create_session("").id
    run.ask(FIRST[:length], session=session, max_tokens=0)
    with pytest.raises(EmptyPrompt):
        run.submit([], session=session, max_tokens=5)
    run.ask(FIRST[length:], session=session)


def test_a_session_of_one_token_at_a_time(run: Running, alone: Running) -> None:
    session = run.engine.create_session("").id
    for token in FIRST[:-1]:
        run.ask([token], session=session, max_tokens=0)
    assert run.ask(FIRST[-1:], session=session).tokens() == alone.ask(FIRST).tokens()


def test_sampling_in_a_session_is_that_of_one_long_prompt(run: Running, alone: Running) -> None:
    session = run.engine.create_session("").id
    run.ask(FIRST, session=session, max_tokens=0)
    options = {"temperature": 1.0, "seed": 5, "repetition_penalty": 1.2}
    assert run.ask(SECOND, session=session, **options).tokens() == alone.ask(FIRST + SECOND, **options).tokens()


def test_provenance_of_a_later_turn(run: Running, alone: Running) -> None:
    session = run.engine.create_session("").id
    run.ask(FIRST, session=session, max_tokens=0)
    wanted = RetrievalParams(provenance=True)
    turn = run.ask(SECOND, session=session, retrieval=wanted).end.retrieval
    whole = alone.ask(FIRST + SECOND, retrieval=wanted).end.retrieval
    assert turn is not None
    assert whole is not None
    assert (turn.fetched, turn.sinks) == pytest.approx((whole.fetched, whole.sinks), abs=1e-4)
    assert [(p.start, p.end) for p in turn.passages] == [(p.start, p.end) for p in whole.passages]


# -- forks ---------------------------------------------------------------------------------------------------


def test_forks_share_the_past_and_part(run: Running, alone: Running) -> None:
    parent = run.engine.create_session("").id
    run.ask(FIRST, session=parent, max_tokens=0)
    before = run.engine.stats().tiers["device"].blocks
    forks = [run.engine.fork_session(parent, "") for _ in range(2)]
    assert run.engine.stats().tiers["device"].blocks == before
    assert {fork.parent for fork in forks} == {parent}
    futures = {parent: THIRD, forks[0].id: SECOND, forks[1].id: SECOND[::-1]}
    for session, future in futures.items():
        turn = run.ask(future, session=session)
        assert turn.tokens() == alone.ask(FIRST + future).tokens()
        assert turn.end.usage.cached_tokens > len(FIRST) - text_per_block(run)
        assert run.engine.session_tokens(session, "") == FIRST + future + turn.tokens()
    run.engine.delete_session(parent, "")
    again = run.ask(THIRD, session=forks[0].id)
    assert again.tokens() == alone.ask(run.engine.session_tokens(forks[0].id, "")[: -len(again.tokens())]).tokens()


# -- naming --------------------------------------------------------------------------------------------------


def test_sessions_are_their_tenants_alone(run: Running) -> None:
    mine, yours = run.engine.create_session("me"), run.engine.create_session("you")
    assert [session.id for session in run.engine.list_sessions("me")] == [mine.id]
    assert [session.id for session in run.engine.list_sessions("you")] == [yours.id]
    for ask in (
        lambda: run.engine.get_session(yours.id, "me"),
        lambda: run.engine.session_tokens(yours.id, "me"),
        lambda: run.engine.fork_session(yours.id, "me"),
        lambda: run.engine.delete_session(yours.id, "me"),
        lambda: run.submit(FIRST, session=yours.id, tenant="me"),
    ):
        with pytest.raises(SessionNotFound, match=yours.id):
            ask()
    assert run.engine.get_session(yours.id, "you").tokens == 0


def test_a_deleted_session_is_gone_and_its_room_free(run: Running) -> None:
    session = run.engine.create_session("").id
    run.ask(FIRST, session=session)
    assert run.engine.stats().tiers["device"].blocks
    assert run.engine.stats().sessions == {"active": 0, "idle": 1}
    run.engine.delete_session(session, "")
    assert run.engine.stats().tiers["device"].blocks == 0
    assert run.engine.list_sessions("") == []
    with pytest.raises(SessionNotFound):
        run.engine.delete_session(session, "")


def test_a_session_tells_its_length_and_use(run: Running) -> None:
    session = run.engine.create_session("")
    run.ask(FIRST, session=session.id, max_tokens=4)
    info = run.engine.get_session(session.id, "")
    assert (info.id, info.tokens, info.busy, info.parent) == (session.id, len(FIRST) + 4, False, None)
    assert info.created == session.created <= info.used


# -- shared prefixes -----------------------------------------------------------------------------------------


def test_a_prompt_asked_again_is_not_computed_again(run: Running) -> None:
    first, again = run.ask(FIRST), run.ask(FIRST)
    size = text_per_block(run)
    assert first.end.usage.cached_tokens == 0
    assert again.end.usage.cached_tokens == (len(FIRST) - 1) // size * size
    assert again.tokens() == first.tokens()
    assert again.end.usage.prompt_tokens == len(FIRST)


def test_another_tenants_prompt_is_computed_again(run: Running) -> None:
    first = run.ask(FIRST, tenant="a")
    other = run.ask(FIRST, tenant="b")
    assert other.end.usage.cached_tokens == 0
    assert other.tokens() == first.tokens()
    assert run.ask(FIRST, tenant="b").end.usage.cached_tokens > 0


def test_a_prompt_that_goes_on_differently_shares_its_beginning(run: Running, alone: Running) -> None:
    run.ask(FIRST + SECOND)
    other = run.ask(FIRST + THIRD)
    size = text_per_block(run)
    assert other.end.usage.cached_tokens == len(FIRST) // size * size
    assert other.tokens() == alone.ask(FIRST + THIRD).tokens()


def test_an_answer_is_part_of_the_prefix(run: Running, alone: Running) -> None:
    """The next turn of a chat without a session."""
    answer = run.ask(FIRST, max_tokens=20).tokens()
    chat = FIRST + answer + SECOND
    turn = run.ask(chat)
    assert turn.end.usage.cached_tokens > len(FIRST) + 20 - 2 * text_per_block(run)
    assert turn.tokens() == alone.ask(chat).tokens()


def test_a_sessions_text_serves_prompts_and_choices(run: Running, alone: Running) -> None:
    session = run.engine.create_session("").id
    run.ask(FIRST, session=session, max_tokens=0)
    choices = run.ask(FIRST + SECOND, n=2, temperature=1.0, seed=3)
    assert choices.end_of(1).usage.cached_tokens > len(FIRST) - text_per_block(run)
    for index in range(2):
        expected = alone.ask(FIRST + SECOND, temperature=1.0, seed=3 + index).tokens()
        assert choices.tokens(index) == expected


def test_without_the_prefix_cache_nothing_is_shared_or_kept(alone: Running) -> None:
    for _ in range(2):
        request = alone.ask(FIRST)
        assert request.end.usage.cached_tokens == 0
        assert isinstance(request.events[-1], Finished)
        alone.settle()
        assert alone.engine.stats().tiers["device"].blocks == 0


# -- turns, and taking them back -----------------------------------------------------------------------------


def turns_of(run: Running, session: str) -> list[tuple[int, int, int, int]]:
    return [(turn.index, turn.start, turn.answer, turn.end) for turn in run.engine.session_turns(session, "")]


def test_a_session_remembers_its_turns(run: Running) -> None:
    session = run.engine.create_session("").id
    assert turns_of(run, session) == []
    run.ask(random_tokens(20), session=session, max_tokens=5)
    run.ask(random_tokens(10), session=session, max_tokens=0)
    fork = run.engine.fork_session(session, "").id
    run.ask(random_tokens(1), session=session, max_tokens=3)
    assert turns_of(run, fork) == [(0, 0, 20, 25), (1, 25, 35, 35)]
    assert turns_of(run, session) == [*turns_of(run, fork), (2, 35, 36, 39)]


@pytest.mark.parametrize("keep", [0, 1, 8, 23, 24, 25, 60, 88, 89, 90])
def test_a_rewound_session_answers_as_if_there_had_never_been_more(run: Running, alone: Running, keep: int) -> None:
    first, second = random_tokens(80, seed=1), random_tokens(9, seed=2)
    session = run.engine.create_session("").id
    told = first + run.ask(first, session=session, max_tokens=10).tokens()
    fork = run.engine.fork_session(session, "").id
    assert run.engine.rewind_session(session, "", tokens=keep).tokens == keep
    assert run.engine.session_tokens(session, "") == told[:keep]
    for asked, past in ((session, told[:keep]), (fork, told)):
        request = run.ask(second, session=asked)
        assert request.tokens() == alone.ask(past + second).tokens()
        assert run.engine.session_tokens(asked, "") == past + second + request.tokens()


def test_a_turn_is_taken_back_and_asked_again(run: Running) -> None:
    session = run.engine.create_session("").id
    requests = [run.ask(random_tokens(30, seed=seed), session=session, max_tokens=5) for seed in range(3)]
    before = turns_of(run, session)
    run.engine.rewind_session(session, "", turn=1)
    assert turns_of(run, session) == before[:1]
    again = [run.ask(random_tokens(30, seed=seed), session=session, max_tokens=5) for seed in (1, 2)]
    assert [request.tokens() for request in again] == [request.tokens() for request in requests[1:]]
    assert turns_of(run, session) == before
    assert again[0].end.usage.cached_tokens <= 35


def test_what_cannot_be_taken_back_is_named(run: Running) -> None:
    session = run.engine.create_session("").id
    with pytest.raises(InvalidParameter, match="remembers no turn"):
        run.engine.rewind_session(session, "", turn=0)
    run.ask(random_tokens(30), session=session, max_tokens=2)
    for wanted, named in (({"turn": 1}, "turns 0 to 0"), ({"tokens": 33}, "between 0 and 32"), ({"tokens": -1}, "and")):
        with pytest.raises(InvalidParameter, match=named) as refused:
            run.engine.rewind_session(session, "", **wanted)
        assert refused.value.parameter in wanted
    with pytest.raises(SessionNotFound):
        run.engine.rewind_session(session, "another", tokens=0)
    run.gate.close()
    request = run.submit(random_tokens(30), session=session)
    run.gate.wait()
    with pytest.raises(SessionBusy):
        run.engine.rewind_session(session, "", tokens=0)
    run.gate.open()
    request.result()


def test_what_an_audit_raised_in_a_forgotten_turn_is_forgotten(run: Running) -> None:
    session = run.engine.create_session("").id
    run.ask(random_tokens(200), session=session, max_tokens=1)
    run.ask(random_tokens(5), session=session, max_tokens=20, retrieval=RetrievalParams(min_mass=1.0))
    held = run.engine._session(session, "")
    assert held.blocks_per_head is not None
    run.engine.rewind_session(session, "", turn=1)
    assert held.blocks_per_head is None
