"""`cairn ask`: a file is read once, each question is asked by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cairn_client import Cairn

from tests.clients.terminal.conftest import Run, Terminal

TEXT = "The grass is green, the sky is blue, and the sun is yellow. " * 40
SHORT = ("--max-tokens", "6")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


def sessions(cairn: Cairn) -> set[str]:
    return {session.id for session in cairn.sessions.list()}


def test_an_answer_is_what_the_session_would_say(run: Run, cairn: Cairn, book: Path) -> None:
    result = run("ask", book, "What is green?", *SHORT)
    assert result.returncode == 0, result.stderr
    session = cairn.sessions.create()
    cairn.sessions.append(session, TEXT)
    assert result.stdout == cairn.chat("What is green?", session=session, temperature=0, max_tokens=6).text + "\n"
    assert "read book.txt" in result.stderr


def test_a_file_is_read_once_whatever_its_name(run: Run, cairn: Cairn, book: Path) -> None:
    first = run("ask", book, "What is green?", *SHORT)
    held = sessions(cairn)
    second = run("ask", book.rename(book.with_name("other.md")), "What is blue?", *SHORT)
    again = run("ask", "-", "What is green?", *SHORT, stdin=TEXT)
    assert "read" in first.stderr
    assert second.stderr == again.stderr == ""
    assert again.stdout == first.stdout
    assert sessions(cairn) == held
    assert "read" in run("ask", book.with_name("other.md"), "What is blue?", *SHORT, "--again").stderr


def test_a_session_that_was_changed_or_deleted_is_not_taken(run: Run, cairn: Cairn, book: Path) -> None:
    before = sessions(cairn)
    run("ask", book, "What is green?", *SHORT)
    [held] = sessions(cairn) - before
    cairn.sessions.append(held, "More.")
    assert "read book.txt" in run("ask", book, "What is green?", *SHORT).stderr
    [held] = sessions(cairn) - before - {held}
    cairn.sessions.delete(held)
    assert "read book.txt" in run("ask", book, "What is green?", *SHORT).stderr


def test_json_tells_everything(run: Run, cairn: Cairn, book: Path) -> None:
    result = run("ask", book, "What is green?", *SHORT, "--json", "--passages", "2", "--keep")
    told = json.loads(result.stdout)
    assert told["usage"]["completion_tokens"] == 6
    assert told["passages"]
    assert all(passage["text"] in TEXT for passage in told["passages"] if passage["document"] == "book.txt")
    assert told["answer"] in cairn.sessions.text(told["session_id"]).text


def test_passages_are_shown(run: Run, book: Path) -> None:
    shown = run("ask", book, "What is green?", "--passages", *SHORT).stdout
    assert "of attention, tokens" in shown
    assert "of book.txt" in shown


def test_what_can_not_be_read(run: Run, cairn: Cairn, tmp_path: Path) -> None:
    before = sessions(cairn)
    missing = run("ask", "nothing.txt", "What?")
    assert (missing.returncode, missing.stderr) == (1, "cairn: nothing.txt: No such file or directory\n")
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 8)
    assert run("ask", "noise", "What?").returncode == 4
    assert sessions(cairn) == before


def test_a_bar_on_a_terminal(terminal: Callable[..., Terminal], book: Path) -> None:
    screen = terminal("ask", str(book), "What is green?", *SHORT)
    screen.wait_for("reading book.txt")
    screen.wait_for("read book.txt: 761 tokens in ")  # in a tenth of a second or less no rate is told
    assert screen.end() == 0


def test_an_interrupted_reading_leaves_nothing_behind(
    terminal: Callable[..., Terminal], cairn: Cairn, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("word " * 14_000)
    before = sessions(cairn)
    screen = terminal("ask", "long.txt", "What is it?")
    screen.wait_for("reading long.txt")
    screen.wait_for("of 14,0")
    screen.send("\x03")
    assert screen.end() == 130
    assert "Traceback" not in screen.shown
    assert sessions(cairn) == before
