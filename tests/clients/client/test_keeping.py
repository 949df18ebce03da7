"""What keeps a session's past in hand: turns, rewinding, conditions, idempotency, files, search. In both forms."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from cairn_client import BadRequest, Cairn, Changed, KeyReused

TEXT = "The grass is green, the sky is blue, and the sun is yellow. " * 60


def test_turns_and_rewinding(either: Cairn) -> None:
    session = either.sessions.create()
    first = either.sessions.append(session, "The sea is wide.").session.tokens
    before = either.sessions.text(session).text
    either.chat("Is it?", session=session, max_tokens=5)
    turns = either.sessions.turns(session)
    assert [(turn.index, turn.start_token) for turn in turns] == [(0, 0), (1, first)]
    assert turns[0].answer_token == turns[0].end_token == first
    assert turns[1].answer_token < turns[1].end_token == either.sessions.get(session).tokens
    assert either.sessions.rewind(session, turn=1).tokens == first
    assert either.sessions.text(session).text == before
    assert either.sessions.rewind(session, tokens=2).tokens == 2


def test_a_condition_holds_or_nothing_is_done(either: Cairn) -> None:
    session = either.sessions.create()
    known = either.sessions.get(session)
    assert known.etag
    either.sessions.append(session, "The sea is wide.", if_match=known.etag)
    for change in (
        lambda: either.sessions.append(session, "No.", if_match=known.etag),
        lambda: either.sessions.add_document(session, b"No.", name="no.txt", if_match=known.etag),
        lambda: either.sessions.rewind(session, tokens=0, if_match=known.etag),
        lambda: either.sessions.change(session, pinned=True, if_match=known.etag),
        lambda: either.sessions.delete(session, if_match=known.etag),
    ):
        with pytest.raises(Changed):
            change()
    held = either.sessions.text(session)
    assert held.text == "The sea is wide."
    either.sessions.delete(session, if_match=held.etag)


def test_a_key_makes_one_session(either: Cairn, request: pytest.FixtureRequest) -> None:
    key = request.node.name
    session = either.sessions.create(ttl_seconds=60, idempotency_key=key)
    assert either.sessions.create(ttl_seconds=60, idempotency_key=key).id == session.id
    assert either.sessions.create(ttl_seconds=60).id != session.id
    with pytest.raises(KeyReused):
        either.sessions.create(ttl_seconds=61, idempotency_key=key)
    fork = either.sessions.fork(session, idempotency_key=f"{key}-fork")
    assert either.sessions.fork(session, idempotency_key=f"{key}-fork").id == fork.id


def test_a_session_through_a_file(either: Cairn, tmp_path: Path) -> None:
    session, path = either.sessions.create(), tmp_path / "colours.cairn"
    either.sessions.append(session, TEXT)
    down, up = list[tuple[int, int | None]](), list[tuple[int, int | None]]()
    written = either.sessions.export(session, path, progress=lambda *told: down.append(told))
    assert written == path.stat().st_size == down[-1][0] == down[-1][1]
    copy = either.sessions.import_from(path, progress=lambda *told: up.append(told))
    assert up[-1] == (written, written)
    assert copy.id != session.id
    assert copy.restored_tokens is not None
    assert copy.restored_tokens > 0.9 * copy.tokens
    assert either.sessions.text(copy).text == TEXT
    bare = io.BytesIO()
    assert either.sessions.export(session, bare, kv=False) < written
    assert either.sessions.import_from(bare).restored_tokens == 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_file_is_refused(either: Cairn, tmp_path: Path) -> None:
    with pytest.raises(BadRequest):
        either.sessions.import_from(b"no session at all")
    with pytest.raises(FileNotFoundError):
        either.sessions.import_from(tmp_path / "nothing.cairn")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        either.sessions.export(either.sessions.create(), tmp_path / "nowhere" / "session.cairn")


def test_searching_changes_nothing(either: Cairn) -> None:
    session = either.sessions.create()
    either.sessions.append(session, TEXT)
    held = either.sessions.text(session)
    found = either.sessions.search(session, "What is green?", passages=3)
    assert 1 <= len(found.passages) <= 6
    for passage in found.passages:
        assert held.text[passage.start_char : passage.end_char] == passage.text
    assert either.sessions.get(session).tokens == held.end_token
