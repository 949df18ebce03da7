"""How far the reading is: a bar on a terminal, a line every tenth in a log. Knows tokens and seconds only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Advance = Callable[[int], None]  # gets the number of tokens that are read


@contextlib.contextmanager
def reading(console: Console, total: int) -> Iterator[Advance]:
    """Show how `total` tokens are read."""
    if console.is_interactive:
        with _bar(console) as bar:
            task = bar.add_task("reading", total=total)
            yield lambda done: bar.update(task, completed=done)
    else:
        yield Tenths(console, total)


class Tenths:
    """A line whenever another tenth is read, without control codes: readable in the log of a CI run."""

    def __init__(self, console: Console, total: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._console = console
        self._total = total
        self._clock = clock
        self._start = clock()
        self._shown = 0

    def __call__(self, done: int) -> None:
        tenth = 10 * done // max(1, self._total)
        if tenth <= self._shown:
            return
        self._shown = tenth
        seconds = self._clock() - self._start
        self._console.print(f"  {10 * tenth:3d}%  {done:>9,} tokens  {seconds:6.1f} s  {rate(done, seconds)}")


def rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:,.0f} tokens/s" if seconds > 0 else "? tokens/s"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:,.0f} of {task.total or 0:,.0f} · {rate(int(task.completed), task.elapsed or 0)}")


def _bar(console: Console) -> Progress:
    columns = (TextColumn("  {task.percentage:3.0f}%"), BarColumn(24), _Rate(), TimeRemainingColumn(compact=True))
    # Transient: the line that says what the reading took replaces it.
    return Progress(*columns, console=console, transient=True)
