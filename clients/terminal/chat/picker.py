"""Which session to go on in."""

from __future__ import annotations

from cairn_client import Cairn, Session
from rich.console import Console

from clients.terminal import listing, screen

MOST = 9


def pick(console: Console, cairn: Cairn) -> Session | None:
    """The session that the user chooses, or a new one; None if the user leaves by Ctrl-D."""
    recent = [session for session in sorted(cairn.sessions.list(), key=lambda session: -session.used) if session.tokens]
    if not recent:
        return cairn.sessions.create()
    shown = recent[:MOST]
    rows = [[number, *_row(cairn, session)] for number, session in enumerate(shown, 1)]
    screen.table(console, ("#", "id", "tokens", "used", "begins"), rows)
    while True:
        try:
            said = console.input("session (a number, or Enter for a new one): ").strip()
        except EOFError:
            console.print()
            return None
        if not said:
            return cairn.sessions.create()
        if said.isdecimal() and 1 <= int(said) <= len(shown):
            return shown[int(said) - 1]
        console.print(f"Say a number from 1 to {len(shown)}, or nothing.")


def _row(cairn: Cairn, session: Session) -> list[str | int]:
    begins = listing.beginning(cairn, session.id, 0, session.tokens)
    return [session.id, session.tokens, screen.age(session.used), begins]
