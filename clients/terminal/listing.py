"""Sessions and turns as tables, and how each begins, so that they can be told apart. Prints, and asks the server.

Into a pipe goes what the server tells at once; beginnings are for people, and each is a request of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from cairn_client import Cairn, CairnError, Session, Turn
from rich.console import Console

from clients.terminal import screen

BEGINNING = 24  # tokens that are shown of each


def sessions(console: Console, cairn: Cairn, found: Sequence[Session]) -> None:
    """Ids, tokens, when they were used, what else is to be said, and how they begin."""
    rows = [screen.session_row(session) for session in found]
    if console.is_terminal:
        for row, session in zip(rows, found, strict=True):
            row[-1:] = [screen.session_note(session), beginning(cairn, session.id, 0, session.tokens)]
    screen.table(console, ("id", "tokens", "used", "", "begins"), rows)


def turns(console: Console, cairn: Cairn, session: str, found: Sequence[Turn]) -> None:
    """Where each turn begins, what it read and generated in tokens, and how it begins."""
    rows = [screen.turn_row(turn) for turn in found]
    if console.is_terminal:
        for row, turn in zip(rows, found, strict=True):
            row.append(beginning(cairn, session, turn.start_token, turn.end_token))
    screen.table(console, ("#", "from token", "read", "generated", "begins"), rows)


def beginning(cairn: Cairn, session: str, start: int, end: int) -> str:
    """The first words of tokens `start` to `end`; nothing if they are gone by now."""
    if start >= end:
        return ""
    try:
        held = cairn.sessions.text(session, start_token=start, end_token=min(start + BEGINNING, end))
    except CairnError:
        return ""
    more = "…" if end > start + BEGINNING else ""
    return screen.one_line(held.text, 60) + more
