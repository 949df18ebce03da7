"""What is printed, on a terminal and into a pipe. Knows no HTTP.

Whatever a server sends is shown and never obeyed: control characters do not reach the terminal.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Sequence

from cairn_client import Passage, Session, Turn
from rich.console import Console
from rich.table import Table
from rich.text import Text

EXCERPT = 300  # characters of a passage that are shown


def output() -> Console:
    """Standard output, for what was asked for."""
    return Console(highlight=False, soft_wrap=True)


def notes() -> Console:
    """Standard error, for what is told on the way."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def harmless(text: str) -> str:
    """`text` without what a terminal would obey; lines, tabs, every kind of space and what joins letters stay."""
    return "".join(c if c.isprintable() or _stays(c) else "\ufffd" if ord(c) == 27 else "" for c in text)


def _stays(character: str) -> bool:
    return character in "\n\t\u200c\u200d" or unicodedata.category(character) == "Zs"


def one_line(text: str, most: int) -> str:
    """The beginning of `text` in one line."""
    line = " ".join(harmless(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str | int]]) -> None:
    """A table on a terminal; elsewhere lines of fields with tabs between them, without a head, for programs."""
    if not console.is_terminal:
        for row in rows:
            print("\t".join(map(str, row)))  # rich would make spaces of the tabs
        return
    shown = Table(box=None, header_style="dim", pad_edge=False)
    for at, name in enumerate(columns):
        numeric = any(isinstance(row[at], int) for row in rows)
        shown.add_column(name, justify="right" if numeric else "left", no_wrap=name == "id")
    for row in rows:
        shown.add_row(*(Text(f"{field:,}" if isinstance(field, int) else field) for field in row))
    console.print(shown, soft_wrap=False)


def session_row(session: Session) -> list[str | int]:
    """Id, tokens, when it was used, what else is to be said."""
    said = [word for word, is_so in (("pinned", session.pinned), ("busy", session.busy)) if is_so]
    said += [f"fork of {session.parent}"] if session.parent else []
    return [session.id, session.tokens, age(session.used), ", ".join(said)]


SESSION_COLUMNS = ("id", "tokens", "used", "")


def turn_row(turn: Turn) -> list[str | int]:
    given, generated = turn.answer_token - turn.start_token, turn.end_token - turn.answer_token
    return [turn.index, turn.start_token, given, generated]


TURN_COLUMNS = ("#", "from token", "read", "generated")


def passages(console: Console, found: Sequence[Passage]) -> None:
    """Each passage: its share of the attention, where it is, and its text."""
    for number, passage in enumerate(found, 1):
        place = f"tokens {passage.start_token:,} to {passage.end_token:,}{_source(passage)}"
        head = Text.assemble((f"{number:2}. ", "cyan"), (f"{passage.share:.1%}", "bold"), f" of attention, {place}")
        console.print(head)
        text = Text(one_line(passage.text, EXCERPT), style="dim")
        for line in text.wrap(console, console.width - 4) if console.is_terminal else [text]:
            line.rstrip()
            console.print(Text("    ").append_text(line))
    if not found:
        console.print("No passages: the text is so short that all of it is always read.")


def _source(passage: Passage) -> str:
    """The document that it lies in, and its page."""
    if passage.document is None:
        return ""
    page = "" if passage.page is None else f", page {passage.page}"
    return f" of {one_line(passage.document, 60)}{page}"


def age(then: float) -> str:
    """How long ago that was."""
    seconds = max(0.0, time.time() - then)
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{seconds:.0f} s ago"
