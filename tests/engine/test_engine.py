"""The engine's duties beyond tokens: every request gets an answer, at once where it cannot run, and others go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cache import OutOfBlocks
from engine import (
    EmptyPrompt,
    EngineError,
    EngineStopped,
    Failed,
    Finished,
    Generation,
    InvalidParameter,
    OutOfRoom,
    QueueFull,
    RequestError,
    SamplingParams,
    SessionBusy,
    SessionNotFound,
    SessionTooLong,
    Step,
)
from tests.engine.running import SECONDS, Request, Running, running
from tests.models import LANDMARK, VOCABULARY, random_tokens, save_model

PROMPT = random_tokens(60)
BLOCK_BYTES = 2 * 3 * 4 * 8 * 16 * 4  # keys and values of the landmark model: layers, heads, size, dim, fp32
TEXT = 7  # text tokens of a block


@pytest.fixture
def run(landmark_folder: Path) -> Iterator[Running]:
    with running(landmark_folder, max_running=4, max_waiting=2, step_tokens=16) as started:
        yield started


def goes_on(run: Running) -> None:
    """A good request is answered as if nothing had been."""
    request = run.ask(PROMPT, max_tokens=4)
    assert (len(request.tokens()), request.end.reason) == (4, "length")
    run.check()


def cancelled(request: Request) -> Finished:
    end = request.result().end
    assert end.reason == "cancelled"
    assert end.usage.completion_tokens == len(request.tokens())
    return end


# -- cancelling ----------------------------------------------------------------------------------------------


def test_cancel_while_waiting(landmark_folder: Path) -> None:
    with running(landmark_folder, max_running=1) as run:
        run.gate.close()
        first, second, third = run.submit(PROMPT), run.submit(PROMPT, n=1), run.submit(PROMPT)
        run.gate.wait()
        assert (run.engine.stats().running, run.engine.stats().waiting) == (1, 2)
        run.cancel(second)
        assert cancelled(second).usage.prompt_tokens == len(PROMPT)  # told at once: the engine still stands
        assert second.tokens() == []
        run.gate.open()
        assert first.result().tokens() == third.result().tokens()
        goes_on(run)


@pytest.mark.parametrize("n", [1, 3])
def test_cancel_while_the_prompt_is_read(run: Running, n: int) -> None:
    run.gate.close()
    request = run.submit(PROMPT, n=n)
    run.gate.wait()
    run.gate.step()
    run.cancel(request)
    run.gate.open()
    ends = request.result().ends()
    assert {(end.reason, end.usage.completion_tokens) for end in ends.values()} == {("cancelled", 0)}
    assert set(ends) == set(range(n))
    goes_on(run)


def test_cancel_while_decoding(run: Running) -> None:
    run.gate.close()
    request, other = run.submit(PROMPT[:10], max_tokens=500), run.submit(PROMPT[:10], max_tokens=30)
    run.gate.wait()
    for _ in range(10):
        run.gate.step()
    run.cancel(request)
    run.gate.open()
    cancelled(request)
    assert 1 <= len(request.tokens()) <= 10
    assert len(other.result().tokens()) == 30
    goes_on(run)


def test_cancel_one_choice(run: Running) -> None:
    options: dict[str, Any] = {"n": 3, "temperature": 1.0, "seed": 1, "max_tokens": 30}
    expected = run.ask(PROMPT[:10], **options)
    run.gate.close()
    request = run.submit(PROMPT[:10], **options)
    run.gate.wait()
    for _ in range(15):
        run.gate.step()
    run.cancel(request, 1)
    run.gate.open()
    ends = request.result().ends()
    assert [ends[index].reason for index in range(3)] == ["length", "cancelled", "length"]
    assert request.tokens(0) == expected.tokens(0)
    assert request.tokens(2) == expected.tokens(2)
    assert request.tokens(1) == expected.tokens(1)[: len(request.tokens(1))]
    assert len(request.tokens(1)) < 30
    goes_on(run)


def test_a_cancelled_session_keeps_what_it_has(run: Running) -> None:
    session = run.engine.create_session("").id
    run.gate.close()
    request = run.submit(PROMPT, session=session)
    run.gate.wait()
    run.cancel(request)
    run.gate.open()
    cancelled(request)
    assert run.engine.session_tokens(session, "") == PROMPT
    assert not run.engine.get_session(session, "").busy
    again = run.ask([9], session=session)
    assert 16 <= again.end.usage.cached_tokens < len(PROMPT)
    assert again.tokens() == run.ask([*PROMPT, 9]).tokens()


def test_a_session_is_free_again_when_its_waiting_request_is_cancelled(landmark_folder: Path) -> None:
    with running(landmark_folder, max_running=1) as run:
        session = run.engine.create_session("").id
        run.gate.close()
        first, waiting = run.submit(PROMPT), run.submit(PROMPT, session=session)
        run.gate.wait()
        run.cancel(waiting)
        cancelled(waiting)
        assert run.engine.session_tokens(session, "") == []
        run.engine.delete_session(session, "")
        run.gate.open()
        first.result()


def test_cancelling_what_has_ended_or_never_was_does_nothing(run: Running) -> None:
    done = run.ask(PROMPT)
    events = len(done.drain())
    run.cancel(done)
    run.engine.cancel("never")
    goes_on(run)
    assert len(done.drain()) == events


# -- refusing ------------------------------------------------------------------------------------------------


def many(*tokens: int) -> dict[str, Any]:
    return {"tokens": list(tokens)}


BAD: dict[str, tuple[dict[str, Any], type[EngineError], str]] = {
    "empty": (many(), EmptyPrompt, "at least one token"),
    "empty, nothing wanted": ({"tokens": [], "max_tokens": 0}, EmptyPrompt, "at least one token"),
    "negative token": (many(7, -1), InvalidParameter, "^prompt: .* between 0 and 127"),
    "token beyond the vocabulary": (many(VOCABULARY, 7), InvalidParameter, "^prompt: "),
    "landmark": (many(7, LANDMARK), InvalidParameter, "^prompt: token 5 is the model's landmark"),
    "no choices": (many(7) | {"n": 0}, InvalidParameter, "^n: must lie between 1 and 4"),
    "too many choices": (many(7) | {"n": 5}, InvalidParameter, "^n: "),
    "bias beyond the vocabulary": (many(7) | {"logit_bias": {VOCABULARY: 1.0}}, InvalidParameter, "^logit_bias: "),
    "negative bias token": (many(7) | {"logit_bias": {-1: 1.0}}, InvalidParameter, "^logit_bias: "),
    "end token beyond": (many(7) | {"stop_token_ids": (VOCABULARY,)}, InvalidParameter, "^stop_token_ids: "),
    "unknown session": (many(7) | {"session": "nobody"}, SessionNotFound, "nobody"),
    "too long": ({"tokens": [7] * 10**5}, SessionTooLong, "the limit is"),
    "too long an answer": (many(7) | {"max_tokens": 1 << 31}, SessionTooLong, "the limit is"),
    "no room for choices": ({"tokens": [7] * 20, "n": 4, "max_tokens": 2000}, OutOfRoom, "blocks"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_run_is_refused_at_once(name: str, run: Running) -> None:
    """With the engine standing still: nothing waits for it; and a good request works after that."""
    options, error, message = BAD[name]
    run.gate.close()
    busy = run.submit(PROMPT)
    run.gate.wait()
    before = run.engine.stats()
    with pytest.raises(error, match=message):
        run.submit(**options)
    assert run.engine.stats() == before
    run.gate.open()
    busy.result()
    goes_on(run)


def test_too_long_tells_how_long_it_may_be(run: Running) -> None:
    limit = run.engine.description.max_session_tokens
    with pytest.raises(SessionTooLong) as caught:
        run.submit([7] * (limit - 5), max_tokens=6)
    assert (caught.value.wanted, caught.value.limit) == (limit + 1, limit)


def test_a_session_reaches_its_limit_and_not_more(landmark_folder: Path) -> None:
    with running(landmark_folder, max_session_tokens=50) as run:
        session = run.engine.create_session("").id
        run.ask(PROMPT[:40], session=session, max_tokens=0)
        with pytest.raises(SessionTooLong):
            run.submit(PROMPT[:6], session=session, max_tokens=5)
        assert run.engine.get_session(session, "").tokens == 40
        assert len(run.ask(PROMPT[:5], session=session, max_tokens=5).tokens()) == 5
        assert run.engine.get_session(session, "").tokens == 50
        with pytest.raises(SessionTooLong):
            run.submit([], session=session, max_tokens=1)


def test_choices_are_refused_in_a_session(run: Running) -> None:
    session = run.engine.create_session("").id
    with pytest.raises(InvalidParameter, match=r"^n: must be 1 in a session"):
        run.submit(PROMPT, session=session, n=2)
    assert not run.engine.get_session(session, "").busy


def test_one_request_at_a_time_in_a_session(run: Running) -> None:
    session = run.engine.create_session("").id
    run.gate.close()
    first = run.submit(PROMPT, session=session)
    run.gate.wait()
    assert run.engine.get_session(session, "").busy
    assert run.engine.stats().sessions == {"active": 1, "idle": 0}
    refused: list[Callable[[], object]] = [
        lambda: run.submit(PROMPT, session=session),
        lambda: run.engine.fork_session(session, ""),
        lambda: run.engine.delete_session(session, ""),
    ]
    for ask in refused:
        with pytest.raises(SessionBusy, match="wait for its end"):
            ask()
    assert run.engine.session_tokens(session, "") == PROMPT  # looking is allowed
    run.gate.open()
    first.result()
    run.settle()
    run.engine.fork_session(session, "")
    run.engine.delete_session(session, "")


def test_who_can_run_at_once_does_not_wait(landmark_folder: Path) -> None:
    """An idle engine takes as many at once as it runs, and as many as may wait, though none has begun yet."""
    with running(landmark_folder, max_running=2, max_waiting=1) as run:
        with run.engine._changed:  # its thread begins nothing meanwhile
            requests = [run.submit(PROMPT) for _ in range(3)]
            with pytest.raises(QueueFull):
                run.submit(PROMPT)
        for request in requests:
            request.result().tokens()


def test_a_step_that_finds_no_room_ends_what_came_last(landmark_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading blocks back takes room as well, which nobody could promise: the others go on."""
    with running(landmark_folder) as run:
        expected = run.submit(PROMPT).result().tokens()
        compute = run.engine._runner.run

        def run_one(step: Step, rows: list[int]) -> Tensor:
            if len(step.spans) > 1:
                raise OutOfBlocks("the memory is full")
            return compute(step, rows)

        monkeypatch.setattr(run.engine._runner, "run", run_one)
        with run.engine._changed:
            first, last = run.submit(PROMPT), run.submit(PROMPT)
        assert first.result().tokens() == expected
        with pytest.raises(OutOfRoom, match="memory is full"):
            last.result()
        goes_on(run)


def test_a_full_queue_refuses_and_empties(landmark_folder: Path) -> None:
    with running(landmark_folder, max_running=1, max_waiting=2) as run:
        run.gate.close()
        requests = [run.submit(PROMPT)]
        run.gate.wait()
        session = run.engine.create_session("").id
        requests += [run.submit(PROMPT), run.submit(PROMPT)]
        for name in (None, session):
            with pytest.raises(QueueFull, match="2 requests are waiting"):
                run.submit(PROMPT, session=name)
        assert not run.engine.get_session(session, "").busy
        run.gate.open()
        answers = [request.result().tokens() for request in requests]
        assert answers[0] == answers[1] == answers[2]
        goes_on(run)


def test_requests_start_in_the_order_they_came(landmark_folder: Path) -> None:
    with running(landmark_folder, max_running=1) as run:
        events: list[int] = []
        for number in range(4):
            generation = Generation(str(number), tuple(PROMPT), SamplingParams(max_tokens=2))
            run.engine.submit(generation, lambda _, number=number: events.append(number))  # type: ignore[misc]
        run.settle()
        assert set(events) == {0, 1, 2, 3}
        assert events == sorted(events)


# -- room ----------------------------------------------------------------------------------------------------


def small(folder: Path, blocks: int, **config: Any) -> Any:
    return running(folder, kv_bytes=blocks * BLOCK_BYTES, **config)


def test_a_request_that_kept_sessions_leave_no_room_for_is_refused(landmark_folder: Path) -> None:
    with small(landmark_folder, 12) as run:
        session = run.engine.create_session("").id
        run.ask(PROMPT[: 7 * TEXT], session=session, max_tokens=0)
        with pytest.raises(OutOfRoom, match=r"needs 8 blocks .* leave 5"):
            run.submit(PROMPT[: 7 * TEXT], max_tokens=2)
        assert len(run.ask(PROMPT[: 4 * TEXT], max_tokens=TEXT).tokens()) == TEXT
        assert len(run.ask(PROMPT[:TEXT], session=session, max_tokens=TEXT).tokens()) == TEXT
        run.engine.delete_session(session, "")
        assert len(run.ask(PROMPT[: 7 * TEXT], max_tokens=2).tokens()) == 2


def test_a_fork_needs_no_room_for_the_past_that_it_shares(landmark_folder: Path) -> None:
    with small(landmark_folder, 12) as run:
        session = run.engine.create_session("").id
        run.ask(PROMPT[: 7 * TEXT], session=session, max_tokens=0)
        fork = run.engine.fork_session(session, "").id
        assert len(run.ask(PROMPT[:TEXT], session=fork, max_tokens=TEXT).tokens()) == TEXT


def test_kept_prompts_make_room(landmark_folder: Path) -> None:
    """Each prompt takes half of the cache, so only the latest ones are remembered."""
    prompts = [random_tokens(5 * TEXT, seed=seed) for seed in range(4)]
    with small(landmark_folder, 12) as run:
        answers = [run.ask(prompt, max_tokens=4).tokens() for prompt in prompts]
        run.settle()
        assert run.engine.stats().tiers["device"].blocks <= 12
        latest = run.ask(prompts[-1], max_tokens=4)
        assert latest.end.usage.cached_tokens == 4 * TEXT
        assert latest.tokens() == answers[-1]
        oldest = run.ask(prompts[0], max_tokens=4)
        assert oldest.end.usage.cached_tokens == 0
        assert oldest.tokens() == answers[0]


def test_requests_that_do_not_fit_together_run_one_after_the_other(landmark_folder: Path) -> None:
    prompts = [random_tokens(6 * TEXT, seed=seed) for seed in range(5)]
    with running(landmark_folder) as run:
        expected = [run.ask(prompt, max_tokens=20).tokens() for prompt in prompts]
    with small(landmark_folder, 16, step_tokens=9) as run:
        requests = [run.submit(prompt, max_tokens=20) for prompt in prompts]
        assert [request.result().tokens() for request in requests] == expected


def test_choices_that_have_not_branched_yet_have_their_room_promised(landmark_folder: Path) -> None:
    """What is admitted beside a prompt that is still read must not take the room of its further answers."""
    with small(landmark_folder, 24, step_tokens=10) as run:
        run.gate.close()
        choices = run.submit(PROMPT[: 5 * TEXT], n=3, max_tokens=2 * TEXT, temperature=1.0, seed=1)
        run.gate.wait()
        other = run.submit(random_tokens(5 * TEXT, seed=9), max_tokens=5 * TEXT)
        run.gate.step()
        assert run.engine.stats().waiting == 1
        run.gate.open()
        assert [len(choices.result().tokens(index)) for index in range(3)] == [2 * TEXT] * 3
        assert len(other.result().tokens()) == 5 * TEXT


def test_choices_that_have_not_branched_yet_count_as_running(landmark_folder: Path) -> None:
    with running(landmark_folder, max_running=3, step_tokens=10) as run:
        run.gate.close()
        choices = run.submit(PROMPT, n=3)
        run.gate.wait()
        other = run.submit(PROMPT)
        run.gate.step()
        assert (run.engine.stats().running, run.engine.stats().waiting) == (1, 1)
        run.gate.open()
        choices.result()
        other.result()


def test_a_tiny_step_budget_still_decodes_everybody(landmark_folder: Path) -> None:
    with running(landmark_folder, step_tokens=1, max_running=5) as run:
        requests = [run.submit(PROMPT[:9], max_tokens=6) for _ in range(5)]
        assert len({tuple(request.result().tokens()) for request in requests}) == 1


# -- stopping ------------------------------------------------------------------------------------------------


def test_stop_drains(landmark_folder: Path) -> None:
    with running(landmark_folder, max_running=2) as run:
        requests = [run.submit(PROMPT, max_tokens=10) for _ in range(4)]
        run.engine.stop(drain_seconds=SECONDS)
        assert [request.result().end.reason for request in requests] == ["length"] * 4
        assert not run.engine._thread.is_alive()


def test_stop_without_patience_answers_everybody(landmark_folder: Path) -> None:
    with running(landmark_folder, max_running=1) as run:
        run.gate.close()
        running_one, waiting = run.submit(PROMPT, max_tokens=500), run.submit(PROMPT)
        run.gate.wait()
        stopper = threading.Thread(target=run.engine.stop)
        stopper.start()
        run.gate.open()
        stopper.join(SECONDS)
        assert running_one.result().end.reason == "cancelled"
        with pytest.raises(EngineStopped):
            waiting.result()


def test_a_stopped_engine_refuses(landmark_folder: Path) -> None:
    with running(landmark_folder) as run:
        session = run.engine.create_session("").id
        run.engine.stop()
        for ask in (lambda: run.submit(PROMPT), lambda: run.engine.create_session("")):
            with pytest.raises(EngineStopped):
                ask()
        with pytest.raises(EngineStopped):
            run.engine.fork_session(session, "")
        with pytest.raises(EngineStopped):  # it could not be stored any more
            run.engine.change_session(session, "", pinned=True)
        with pytest.raises(EngineStopped):
            run.engine.delete_session(session, "")
        assert run.engine.get_session(session, "").tokens == 0
        run.engine.stop()  # again does nothing


def test_draining_ends_as_soon_as_the_last_request_is_refused(landmark_folder: Path) -> None:
    """A session that was filled while the request waited leaves it no room: the refusal must wake who drains."""
    with small(landmark_folder, 12, max_running=1, prefix_cache=False) as run:
        session = run.engine.create_session("").id
        run.gate.close()
        run.submit(PROMPT[:TEXT])
        run.gate.wait()
        filling = run.submit(PROMPT[: 6 * TEXT], session=session, max_tokens=TEXT)
        late = run.submit(PROMPT[: 6 * TEXT], max_tokens=TEXT)
        begun = time.monotonic()
        stopper = threading.Thread(target=run.engine.stop, args=(SECONDS,))
        stopper.start()
        run.gate.open()
        filling.result()
        with pytest.raises(OutOfRoom):
            late.result()
        stopper.join(SECONDS)
        assert time.monotonic() - begun < SECONDS / 2


# -- failing -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose logits are not numbers once token 100 has been read."""
    folder = save_model("llama", tmp_path_factory.mktemp("models") / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][100] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_fail_their_request_alone(broken_folder: Path, temperature: float) -> None:
    with running(broken_folder, block_size=8) as run:
        good = [token for token in PROMPT if token != 100]
        expected = run.ask(good, max_tokens=4).tokens()
        run.gate.close()
        broken, other = run.submit([*good, 100], temperature=temperature), run.submit(good, max_tokens=4)
        run.gate.wait()
        run.gate.open()
        with pytest.raises(EngineError):
            broken.result()
        assert other.result().tokens() == expected
        assert run.ask(good, max_tokens=4).tokens() == expected


def test_a_failed_request_leaves_its_session_usable_or_gone_but_not_busy(broken_folder: Path) -> None:
    with running(broken_folder, block_size=8) as run:
        session = run.engine.create_session("").id
        with pytest.raises(EngineError):
            run.ask([7, 100], session=session, temperature=1.0)
        run.settle()
        run.engine.delete_session(session, "")


def test_errors_are_of_the_kinds_that_callers_tell_apart() -> None:
    assert all(issubclass(error, RequestError) for error in (EmptyPrompt, InvalidParameter, SessionTooLong))
    others = (RequestError, SessionNotFound, SessionBusy, QueueFull, OutOfRoom, EngineStopped)
    assert all(issubclass(error, EngineError) for error in others)
    assert Failed(EngineStopped("stopped")).error.args == ("stopped",)
