"""Which session to go on in."""

from __future__ import annotations

from cairn_client import Cairn, CairnError, Session
from rich.console import Console

from clients.terminal import screen

MOST = 9
BEGINNING = 24  # tokens that are shown of each


def pick(console: Console, cairn: Cairn) -> Session:
    """The session that the user chooses, or a new one."""
    recent = [session for session in sorted(cairn.sessions.list(), key=lambda session: -session.used) if session.tokens]
    if not recent:
        return cairn.sessions.create()
    shown = recent[:MOST]
    rows = [[number, *_row(cairn, session)] for number, session in enumerate(shown, 1)]
    screen.table(console, ("#", "id", "tokens", "used", "begins"), rows)
    while True:
        said = console.input("session (a number, or Enter for a new one): ").strip()
        if not said:
            return cairn.sessions.create()
        if said.isdecimal() and 1 <= int(said) <= len(shown):
            return shown[int(said) - 1]
        console.print(f"Say a number from 1 to {len(shown)}, or nothing.")


def _row(cairn: Cairn, session: Session) -> list[str | int]:
    return [session.id, session.tokens, screen.age(session.used), _beginning(cairn, session)]


def _beginning(cairn: Cairn, session: Session) -> str:
    try:
        held = cairn.sessions.text(session, end_token=min(BEGINNING, session.tokens))
    except CairnError:  # it may be gone by now
        return ""
    return screen.one_line(held.text, 40)
