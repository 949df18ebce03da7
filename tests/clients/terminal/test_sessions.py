"""`cairn sessions`, through pipes."""

from __future__ import annotations

import json

from cairn_client import Cairn

from tests.clients.terminal.conftest import Run

TEXT = "The grass is green, the sky is blue, and the sun is yellow. "


def test_list(run: Run, cairn: Cairn) -> None:
    session = cairn.sessions.create(pinned=True)
    cairn.sessions.append(session, TEXT)
    rows = [line.split("\t") for line in run("sessions", "list").stdout.splitlines()]
    [row] = [row for row in rows if row[0] == session.id]
    tokens = cairn.sessions.get(session).tokens
    assert row[1] == str(tokens)
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
