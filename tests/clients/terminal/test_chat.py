"""`cairn chat` in a pseudo-terminal and through pipes, against the real server."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cairn_client import Cairn
from rich.console import Console

from clients.terminal import reading
from clients.terminal.reading import Moved
from tests.clients.terminal.conftest import Run, Terminal

Start = Callable[..., Terminal]


def test_through_pipes(run: Run, cairn: Cairn) -> None:
    session = cairn.sessions.create()
    first = run("chat", session.id, "--max-tokens", "8", "--temperature", "0", stdin="Who is there?\n\nAnd now?\n")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    twin = cairn.sessions.create()
    said = [cairn.chat(line, session=twin, max_tokens=8, temperature=0).text for line in ("Who is there?", "And now?")]
    assert first.stdout == "".join(f"{text}\n" for text in said)
    assert cairn.sessions.get(session).tokens == cairn.sessions.get(twin).tokens


def test_commands_through_pipes(run: Run, cairn: Cairn) -> None:
    lines = "The sea is wide. " * 30 + "\n/passages\n/new\n/help\n/quit\nnever said\n"
    result = run("chat", "--new", "--max-tokens", "4", stdin=lines)
    assert result.returncode == 0, result.stderr
    assert "of attention, tokens" in result.stdout
    assert "/attach FILE" in result.stdout
    assert re.search(r"session [0-9a-f]{24}, 0 tokens", result.stdout)


@pytest.mark.parametrize(("line", "problem"), [("/what", "no command /what"), ("/attach", "which file")])
def test_a_line_that_can_not_be_carried_out(run: Run, line: str, problem: str) -> None:
    result = run("chat", "--new", stdin=f"{line}\n")
    assert result.returncode == 2
    assert problem in result.stderr


def test_a_session_that_is_not_there(run: Run) -> None:
    result = run("chat", "0" * 24, stdin="Hello\n")
    assert result.returncode == 4
    assert "0" * 24 in result.stderr


def test_a_conversation(terminal: Start, cairn: Cairn) -> None:
    screen = terminal("chat", "--new", "--max-tokens", "6")
    screen.wait_for("/help lists commands")
    screen.say("Who is there?\r")
    screen.wait_for("Who is there?")
    screen.say("/passages\r")
    screen.wait_for("assages:")
    screen.say("/nonsense\r")
    screen.wait_for("there is no command /nonsense")
    screen.say("\x04")
    assert screen.end() == 0
    told = re.search(r"go on with: cairn chat ([0-9a-f]{24})", screen.shown)
    assert told
    assert "Who is there?" in cairn.sessions.text(told[1]).text


def test_control_c_stops_an_answer_and_keeps_the_session(terminal: Start, cairn: Cairn) -> None:
    session = cairn.sessions.create()
    screen = terminal("chat", session.id, "--max-tokens", "10000", "--temperature", "0")  # it goes on and on
    screen.say("Tell me all you know.\r")
    while not cairn.sessions.get(session).busy:
        time.sleep(0.02)
    time.sleep(0.2)
    screen.send("\x03")
    screen.wait_for("the session keeps what was said")
    while cairn.sessions.get(session).busy:
        time.sleep(0.02)
    assert 20 < cairn.sessions.get(session).tokens < 9000
    screen.say("/quit\r")
    assert screen.end() == 0
    assert " · 0 tokens" not in screen.shown.split("keeps what was said")[1]


def test_the_choice_of_a_session(terminal: Start, cairn: Cairn) -> None:
    session = cairn.sessions.create()
    cairn.sessions.append(session, "The harbour lies to the north.")
    screen = terminal("chat")
    shown = screen.wait_for("Enter for a new one")
    [line] = [line for line in shown.splitlines() if session.id in line]
    assert "The harbour lies" in line
    number = line.split()[0]
    screen.send(f"{number}\r")
    screen.wait_for(f"session {session.id}")
    screen.say("/open " + "0" * 24 + "\r")
    screen.wait_for("there is no session")
    screen.say("\x04")
    assert screen.end() == 0
    assert f"cairn chat {session.id}" in screen.shown


def test_history_is_kept_and_only_for_its_user(terminal: Start, tmp_path: Path) -> None:
    screen = terminal("chat", "--new", "--max-tokens", "2")
    screen.say("/help\r")
    screen.wait_for("Ctrl-D leaves")
    screen.say("\x04")
    assert screen.end() == 0
    [history] = tmp_path.rglob("history")
    assert "+/help" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_a_server_that_went_away_is_told(terminal: Start, cairn: Cairn) -> None:
    screen = terminal("chat", "--url", "http://127.0.0.1:9")
    screen.wait_for("no server can be reached")
    assert screen.end() == 3


def test_a_file_is_attached_and_a_turn_is_forgotten(run: Run, cairn: Cairn, tmp_path: Path) -> None:
    (tmp_path / "my book.txt").write_text("The sea is wide. " * 40)
    session = cairn.sessions.create()
    said = "/attach my book.txt\nIs it?\n/passages\n/turns\n/rewind\n/fork\n/sessions\n/rewind 0\n"
    result = run("chat", session.id, "--max-tokens", "3", stdin=said)
    assert result.returncode == 0, result.stderr
    assert "read my book.txt" in result.stdout
    assert "of my book.txt" in result.stdout
    assert "turn 1 and all after it are forgotten" in result.stdout
    assert cairn.sessions.text(session).text == "The sea is wide. " * 40
    assert f"fork of {session.id}" in result.stdout
    assert "0 tokens are left" in result.stdout


def test_searching_and_exporting(run: Run, cairn: Cairn, tmp_path: Path) -> None:
    session = cairn.sessions.create()
    cairn.sessions.append(session, "The sea is wide. " * 200)
    result = run("chat", session.id, stdin="/search How wide is it?\n/export sea.cairn\n")
    assert result.returncode == 0, result.stderr
    assert "of attention, tokens" in result.stdout
    assert cairn.sessions.text(cairn.sessions.import_from(tmp_path / "sea.cairn")).text == "The sea is wide. " * 200


def test_leaving_before_a_session_is_chosen(terminal: Start, cairn: Cairn) -> None:
    cairn.sessions.append(cairn.sessions.create(), "The harbour lies to the north.")
    screen = terminal("chat")
    screen.wait_for("Enter for a new one")
    screen.send("\x04")
    assert screen.end() == 0
    assert "Traceback" not in screen.shown


def test_what_says_nothing_is_not_left_behind(run: Run, terminal: Start, cairn: Cairn) -> None:
    others = cairn.sessions.create()
    before = {session.id for session in cairn.sessions.list()}
    silent = run("chat", "--new", stdin="/new\n/fork\n")
    assert (silent.returncode, silent.stderr) == (0, "")
    spoken = run("chat", "--new", "--max-tokens", "2", stdin="Hello\n")
    [made] = {session.id for session in cairn.sessions.list()} - before
    assert spoken.stderr == f"go on with: cairn chat {made}\n"
    screen = terminal("chat", others.id)  # not begun there: not ours to delete
    screen.say("\x04")
    screen.wait_for(f"cairn chat {others.id}")
    assert screen.end() == 0
    assert cairn.sessions.get(others).tokens == 0


def test_a_file_that_can_not_be_read_is_named(terminal: Start, tmp_path: Path) -> None:
    (tmp_path / "nothing.txt").touch()
    screen = terminal("chat", "--new")
    screen.say("/attach nothing.txt\r")
    screen.wait_for("nothing.txt: the file holds no text")
    screen.say("\x04")
    assert screen.end() == 0


def test_turns_and_sessions_tell_how_they_begin(terminal: Start, cairn: Cairn) -> None:
    session = cairn.sessions.create()
    cairn.sessions.append(session, "The harbour lies to the north. " * 20)
    cairn.sessions.append(session, "The bridge is closed.")
    screen = terminal("chat", session.id, columns=60)
    screen.say("/turns\r")
    shown = screen.wait_for("bridge is closed")
    assert re.search(r"0 +0 +\d+ +0 +The harbour", shown)
    screen.say("/sessions\r")
    shown = screen.wait_for("The harb")
    [line] = [line for line in shown.splitlines() if session.id in line]
    assert f"{cairn.sessions.get(session).tokens} " in line
    screen.say("/help\r")
    lines = [line.rstrip() for line in screen.wait_for("leaves.").split("> /help\n")[1].splitlines()]
    assert max(map(len, lines)) <= 60
    assert "                    question, without asking it" in lines  # cut between words, below itself
    screen.say("\x04")
    assert screen.end() == 0


def test_the_bar_counts_what_is_attached_alone(cairn: Cairn, tmp_path: Path) -> None:
    session = cairn.sessions.create()
    held = cairn.sessions.append(session, "The sea is wide. " * 200).session.tokens
    (tmp_path / "book.txt").write_text("The sky is blue. " * 200)
    heard: list[tuple[int, int | None]] = []

    @contextlib.contextmanager
    def bar(*_: object) -> Iterator[Moved]:
        yield lambda done, total: heard.append((done, total))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_bar", bar)
        reading.read(Console(quiet=True), cairn, session, str(tmp_path / "book.txt"), "book.txt")
    tokens = cairn.sessions.get(session).tokens - held
    assert heard[-1] == (tokens, tokens)
    assert all(0 <= done <= tokens and total == tokens for done, total in heard)
