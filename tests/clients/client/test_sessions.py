"""Sessions by the client, in both its forms, against the real server."""

from __future__ import annotations

import pytest
from cairn_client import Busy, Cairn, NotFound, Progress

TEXT = "The grass is green, the sky is blue, and the sun is yellow. " * 100


def test_a_life(either: Cairn) -> None:
    session = either.sessions.create(ttl_seconds=900)
    assert (session.tokens, session.ttl_seconds, session.pinned) == (0, 900, False)
    appended = either.sessions.append(session, "The sea is wide.")
    assert appended.session.tokens == appended.tokens > 0
    assert either.sessions.change(session, pinned=True, ttl_seconds=0).pinned
    assert either.sessions.get(session.id).tokens == appended.tokens
    fork = either.sessions.fork(session)
    assert fork.parent == session.id
    assert either.sessions.text(fork).text == either.sessions.text(session).text == "The sea is wide."
    assert either.sessions.text(fork, start_token=1, end_token=2).text in "The sea is wide."
    either.sessions.delete(session)
    with pytest.raises(NotFound) as caught:
        either.sessions.get(session)
    assert caught.value.code == "session_not_found"
    assert either.sessions.get(fork).tokens == fork.tokens
    either.sessions.delete(fork)


def test_reading_tells_its_progress(either: Cairn) -> None:
    session, told = either.sessions.create(), list[Progress]()
    appended = either.sessions.append(session, TEXT, progress=told.append)
    assert told
    assert [step.processed for step in told] == sorted(step.processed for step in told)
    assert all(step.total == appended.session.tokens for step in told)
    assert told[-1].processed == appended.tokens
    assert appended.usage is not None


def test_an_answer_continues_a_session(either: Cairn) -> None:
    session = either.sessions.create()
    read = either.sessions.append(session, TEXT).session.tokens
    answer = either.chat("What is green?", session=session, max_tokens=4)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > read
    assert answer.usage.cached_tokens > 0.9 * read
    assert answer.session_id == session.id


def test_all_sessions_are_listed(either: Cairn) -> None:
    made = {either.sessions.create().id for _ in range(5)}
    assert made <= {session.id for session in either.sessions.list(page_size=2)}


def test_a_busy_session_is_refused(either: Cairn, cairn: Cairn) -> None:
    session = cairn.sessions.create()
    with cairn.complete_stream("x", session=session, max_tokens=12_000, ignore_eos=True) as stream:
        next(stream)
        with pytest.raises(Busy):
            either.sessions.append(session, "more")


def test_an_empty_name_is_no_session(either: Cairn) -> None:
    with pytest.raises(ValueError, match="empty"):
        either.sessions.get("")
