"""How far something long has come: a bar on a terminal, nothing elsewhere. Knows numbers only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cairn_client import ApiError, Appended, Cairn, Session
from cairn_client import Progress as Step
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Moved = Callable[[int, int | None], None]


def read(console: Console, cairn: Cairn, session: Session, file: str | bytes, name: str) -> Appended:
    """Read a file into the session, and tell how far that is."""
    start, held = time.monotonic(), cairn.sessions.get(session).tokens
    with _bar(console, f"reading {name}", _Tokens()) as moved:

        def heard(step: Step) -> None:  # of the whole session; `held` tokens of it were there before
            moved(step.processed - held, step.total - held)

        content = Path(file) if isinstance(file, str) else file
        try:
            appended = cairn.sessions.add_document(session, content, name=name, progress=heard)
        except ApiError as error:
            error.add_note(name)  # which `message_of` puts before what the server says
            raise
    seconds = time.monotonic() - start
    rate = f", {appended.tokens / seconds:,.0f} tokens/s" if seconds > 0.1 else ""
    console.print(f"read {name}: {appended.tokens:,} tokens in {seconds:.1f} s{rate}", markup=False, style="dim")
    return appended


@contextlib.contextmanager
def moving(console: Console, what: str) -> Iterator[Moved]:
    """Bytes on their way."""
    with _bar(console, what, DownloadColumn()) as moved:
        yield moved


class _Tokens(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.completed:,.0f} of {task.total:,.0f} tokens")


@contextlib.contextmanager
def _bar(console: Console, what: str, amount: ProgressColumn) -> Iterator[Moved]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(24), amount, TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
