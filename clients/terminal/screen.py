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
    """Standard output, for what was asked for: wrapped between words on a terminal, lines as they are elsewhere."""
    return _console(stderr=False)


def notes() -> Console:
    """Standard error, for what is told on the way."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    console.soft_wrap = not console.is_terminal
    return console


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
    """A table on a terminal; elsewhere lines of fields with tabs between them, without a head, for programs.

    On a narrow terminal the last column is cut; what it says is words, and what stands before are names and numbers.
    """
    if not console.is_terminal:
        for row in rows:
            print("\t".join(map(str, row)))  # rich would make spaces of the tabs
        return
    shown = Table(box=None, header_style="dim", pad_edge=False)
    for at, name in enumerate(columns):
        numeric = any(isinstance(row[at], int) for row in rows)
        shown.add_column(name, justify="right" if numeric else "left", no_wrap=at < len(columns) - 1)
    for row in rows:
        shown.add_row(*(Text(_field(field), no_wrap=True, overflow="ellipsis") for field in row))
    console.print(shown, soft_wrap=False)


def explained(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    """What things are called, and what they are; wrapped below themselves on a terminal."""
    shown = Table.grid(padding=(0, 2, 0, 0))
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for name, text in pairs:
        if console.is_terminal:
            shown.add_row(Text(f"  {name}"), Text(text))
        else:
            print(f"  {name:<20} {text}")
    if console.is_terminal:
        console.print(shown, soft_wrap=False)


def _field(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def session_row(session: Session) -> list[str | int]:
    """Id, tokens, when it was used, what else is to be said."""
    note = session_note(session, whole=True)
    return [session.id, session.tokens, age(session.used), note]


def session_note(session: Session, *, whole: bool = False) -> str:
    """What is special about it; as a `whole` with the id of its parent, else in few words."""
    parent = f"fork of {session.parent}" if whole else "fork"
    said = (("pinned", session.pinned), ("busy", session.busy), (parent, bool(session.parent)))
    return ", ".join(word for word, is_so in said if is_so)


def turn_row(turn: Turn) -> list[str | int]:
    """Number, first token, tokens that were read and that were generated."""
    given, generated = turn.answer_token - turn.start_token, turn.end_token - turn.answer_token
    return [turn.index, turn.start_token, given, generated]


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
