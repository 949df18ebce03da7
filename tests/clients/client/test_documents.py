"""Documents by the client, in both its forms."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from cairn_client import BadRequest, Cairn, Progress

TEXT = "The grass is green, the sky is blue, and the sun is yellow. " * 60


@pytest.mark.parametrize("kind", ["path", "text of a path", "bytes", "file"])
def test_a_document_however_it_is_given(either: Cairn, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "colours.md"
    path.write_text(TEXT)
    opened = io.BytesIO(TEXT.encode())
    source = {"path": path, "text of a path": str(path), "bytes": TEXT.encode(), "file": opened}[kind]
    session, told = either.sessions.create(), list[Progress]()
    name = None if kind in ("path", "text of a path") else "colours.md"
    appended = either.sessions.add_document(session, source, name=name, progress=told.append)  # type: ignore[arg-type]
    assert appended.document is not None
    assert (appended.document.name, appended.document.media_type) == ("colours.md", "text/markdown")
    assert appended.document.characters == len(TEXT)
    assert (appended.document.start_token, appended.document.end_token) == (0, appended.session.tokens)
    assert told[-1].processed == told[-1].total == appended.tokens
    assert either.sessions.text(session).text == TEXT


def test_passages_name_their_document(either: Cairn) -> None:
    session = either.sessions.create()
    either.sessions.add_document(session, TEXT.encode(), name="colours.txt", media_type="text/plain")
    answer = either.chat("What is green?", session=session, max_tokens=2, retrieval={"provenance": True})
    assert "colours.txt" in {passage.document for passage in answer.passages}


def test_a_document_that_can_not_be_read(either: Cairn) -> None:
    session = either.sessions.create()
    with pytest.raises(BadRequest):
        either.sessions.add_document(session, bytes(range(256)) * 9, name="noise.bin")
    with pytest.raises(FileNotFoundError):
        either.sessions.add_document(session, "/nowhere/book.pdf")
    assert either.sessions.get(session).tokens == 0
