"""A passage says which document it is from, and which page: of what the session holds now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from server.library import Library
from tests.server.pdfs import pdf_of
from tests.server.test_documents import added, text_of
from tests.server.test_durability import served
from tests.server.test_sessions import append, chat, create

WORDS = "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa".split()
PAGES = [
    f"Page {number} tells of {word}.\n" + f"{word} and {word} again.\n" * 6 for number, word in enumerate(WORDS, 1)
]
BEFORE = "Nothing of this is from a document. " * 20


QUESTIONS = ("Who?", "What is it that page 3 tells of?", "Where, and when?")


def passages(client: httpx.Client, session: str, questions: int = 3) -> list[dict[str, Any]]:
    """What answers read, in places that are apart; the session stays as it is."""
    found: list[dict[str, Any]] = []
    for question in QUESTIONS[:questions]:
        fork = client.post(f"/v1/sessions/{session}/fork").json()["id"]
        told = chat(client, fork, question, retrieval={"provenance": True, "passages": 8, "blocks_per_head": 4})
        found += told["retrieval"]["passages"]
    assert len(found) > questions
    return found


def pages_of(found: list[dict[str, Any]]) -> dict[int | None, str]:
    """The beginnings of passages by the page that they name; the document is always the book."""
    assert {each["document"] for each in found if "document" in each} <= {"book.pdf"}
    return {each["page"]: each["text"] for each in found if "document" in each}


def test_each_passage_names_its_page(tiny: httpx.Client) -> None:
    session = create(tiny)
    append(tiny, session, BEFORE)
    told = added(tiny, session, ("book.pdf", pdf_of(*PAGES)))["document"]
    whole = text_of(tiny, session)
    found = passages(tiny, session)
    assert len(pages_of(found)) > 3
    for passage in found:
        middle = (passage["start_token"] + passage["end_token"]) / 2
        inside = told["start_token"] < middle < told["end_token"]
        assert ("document" in passage) == inside, passage
        if inside:
            assert passage["document"] == "book.pdf"
            blank = len(passage["text"]) - len(passage["text"].lstrip())
            start = max(passage["start_char"] + blank, len(BEFORE))
            assert whole[len(BEFORE) : start].count("\f") + 1 == passage["page"]
            assert PAGES[passage["page"] - 1].split()[4].rstrip(".") in whole[start - 40 : start + 80]


def test_documents_without_pages_have_a_name_alone(tiny: httpx.Client) -> None:
    session = create(tiny)
    added(tiny, session, ("one.md", b"First words, " * 90))
    added(tiny, session, ("two.md", b"Other words, " * 90))
    found = [each for each in passages(tiny, session) if "document" in each]
    assert {each["document"] for each in found} == {"one.md", "two.md"}
    for each in found:
        assert each["page"] is None
        first, second = (each["text"].count(word) for word in ("First", "Other"))
        assert each["document"] == ("one.md" if first >= second else "two.md")


def test_what_was_rewound_is_no_document_any_more(tiny: httpx.Client) -> None:
    session = create(tiny)
    append(tiny, session, BEFORE)
    told = added(tiny, session, ("book.pdf", pdf_of(*PAGES)))["document"]
    fork = tiny.post(f"/v1/sessions/{session}/fork").json()["id"]
    rewound = tiny.post(f"/v1/sessions/{session}/rewind", json={"tokens": told["start_token"]})
    assert rewound.status_code == 200, rewound.text
    append(tiny, session, "Something else altogether. " * 200)
    assert not any("document" in each for each in passages(tiny, session))
    assert pages_of(passages(tiny, fork))


def test_a_restart_and_a_fork_keep_the_documents(tiny_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"disk_kv_path": str(tmp_path / "store"), "disk_kv_bytes": 1 << 28, "kv_bytes": 1 << 26}
    with served(tiny_folder, **settings) as client:
        session = create(client)
        added(client, session, ("book.pdf", pdf_of(*PAGES[:6])))
        told = pages_of(passages(client, session, 1))
        assert told
    with served(tiny_folder, **settings) as client:
        assert pages_of(passages(client, session, 1)).keys() == told.keys()
        fork = client.post(f"/v1/sessions/{session}/fork").json()["id"]
        client.delete(f"/v1/sessions/{session}")
        added(client, create(client), ("other.txt", b"Another one."))  # forgets the documents of the deleted one
        assert pages_of(passages(client, fork, 1)).keys() == told.keys()


def test_documents_go_with_a_session_file(tiny: httpx.Client, tiny_folder: Path, tmp_path: Path) -> None:
    session = create(tiny)
    append(tiny, session, BEFORE)
    added(tiny, session, ("book.pdf", pdf_of(*PAGES[:6])))
    told = pages_of(passages(tiny, session, 1))
    file = tiny.get(f"/v1/sessions/{session}/export").content
    with served(tiny_folder) as other:
        taken = other.post("/v1/sessions/import", content=file).json()["id"]
        assert pages_of(passages(other, taken, 1)).keys() == told.keys()
        rewound = other.post(f"/v1/sessions/{taken}/rewind", json={"tokens": 20})
        assert rewound.status_code == 200
        append(other, taken, "Something else altogether. " * 200)
        assert not any("document" in each for each in passages(other, taken))


@pytest.mark.parametrize("notes", [b"", b"{", b'{"documents": [{}]}', b'{"documents": [{"start": -1}]}', b"[]"])
def test_notes_that_make_no_sense_are_left_out(notes: bytes) -> None:
    library = Library(None)
    library.take("", "session", notes, [])
    assert library.of("", "session") == []
    library.close()
