"""`cairn sessions`, through pipes."""

from __future__ import annotations

import json
from pathlib import Path

from cairn_client import Cairn

from tests.clients.terminal.conftest import Run

TEXT = "The grass is green, the sky is blue, and the sun is yellow. "


def test_list(run: Run, cairn: Cairn) -> None:
    session = cairn.sessions.create(pinned=True)
    cairn.sessions.append(session, TEXT * 100)
    rows = [line.split("\t") for line in run("sessions", "list").stdout.splitlines()]
    [row] = [row for row in rows if row[0] == session.id]
    tokens = cairn.sessions.get(session).tokens
    assert row[1] == str(tokens)  # a number for programs: without commas
    assert tokens > 1000
    assert row[2].endswith("ago")
    assert row[3] == "pinned"
    told = json.loads(run("sessions", "list", "--json", "--limit", "1").stdout)
    assert len(told) == 1
    assert told[0]["object"] == "session"
    cairn.sessions.delete(session)


def test_show(run: Run, cairn: Cairn) -> None:
    session = cairn.sessions.create()
    cairn.sessions.append(session, TEXT)
    assert run("sessions", "show", session.id, "--text").stdout == TEXT + "\n"
    shown = run("sessions", "show", session.id).stdout
    assert session.id in shown
    assert "until it is deleted" in shown
    assert json.loads(run("sessions", "show", session.id, "--json").stdout)["id"] == session.id


def test_fork_and_delete(run: Run, cairn: Cairn) -> None:
    session = cairn.sessions.create()
    fork = run("sessions", "fork", session.id).stdout.strip()
    assert cairn.sessions.get(fork).parent == session.id
    assert run("sessions", "delete", session.id, fork).returncode == 0
    gone = run("sessions", "delete", session.id)
    assert gone.returncode == 4
    assert session.id in gone.stderr


def test_a_text_can_not_command_the_terminal(run: Run, cairn: Cairn) -> None:
    session = cairn.sessions.create()
    cairn.sessions.append(session, "red \x1b[31m and \x07 bell\ttab\n")
    shown = run("sessions", "show", session.id, "--text").stdout
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "bell\ttab\n" in shown


def test_spaces_of_every_kind_stay(run: Run, cairn: Cairn) -> None:
    text = "10\u00a0000\u202fF, \u6771\u4eac\u3000\u5927\u962a, \u0645\u06cc\u200c\u0634\u0648\u062f."
    session = cairn.sessions.create()
    cairn.sessions.append(session, text)
    assert run("sessions", "show", session.id, "--text").stdout == text + "\n"


def test_turns_and_rewind(run: Run, cairn: Cairn) -> None:
    session = cairn.sessions.create()
    cairn.sessions.append(session, TEXT)
    cairn.chat("What?", session=session, max_tokens=3)
    turns = [line.split("\t") for line in run("sessions", "show", session.id, "--turns").stdout.splitlines()]
    assert [(turn[0], turn[3]) for turn in turns] == [("0", "0"), ("1", "3")]
    left = run("sessions", "rewind", session.id, "--turn", "1")
    assert left.stdout == f"{cairn.sessions.get(session).tokens} tokens are left\n"
    assert cairn.sessions.text(session).text == TEXT
    assert run("sessions", "rewind", session.id, "--turn", "7").returncode == 4


def test_through_a_file(run: Run, cairn: Cairn, tmp_path: Path) -> None:
    session = cairn.sessions.create()
    cairn.sessions.append(session, TEXT)
    exported = run("sessions", "export", session.id)
    assert exported.stderr.startswith(f"{session.id}.cairn: ")
    imported = run("sessions", "import", tmp_path / f"{session.id}.cairn")
    assert "need no computing" in imported.stderr
    assert cairn.sessions.text(imported.stdout.strip()).text == TEXT
    assert run("sessions", "import", "nothing").returncode == 1
    (tmp_path / "book.txt").write_text(TEXT)
    foreign = run("sessions", "import", tmp_path / "book.txt")
    assert (foreign.returncode, "is no session file" in foreign.stderr) == (4, True)


def test_search(run: Run, cairn: Cairn) -> None:
    session = cairn.sessions.create()
    cairn.sessions.append(session, TEXT * 20)
    lines = run("sessions", "search", session.id, "What is green?").stdout.splitlines()
    assert "of attention, tokens" in lines[0]
    assert not lines[2:] or "of attention, tokens" in lines[2]  # each text is one line, without spaces behind it
    assert lines == [line.rstrip() for line in lines]
    assert json.loads(run("sessions", "search", session.id, "green", "--json", "--passages", "1").stdout)
