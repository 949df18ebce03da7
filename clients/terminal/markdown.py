"""An answer in Markdown, rendered while it comes. Knows no HTTP.

Paragraphs that are complete are printed for good; only the last one is drawn anew with each piece. So an answer may be
longer than the screen, and what is above can be scrolled to.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.spinner import Spinner

from clients.terminal.screen import harmless

FENCES = ("```", "~~~")


class Writing:
    """Use it as a context manager; `feed` it the pieces of the answer."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = ""
        self._spinner = Spinner("dots")
        self._live = Live(console=console, transient=True, refresh_per_second=12, get_renderable=self._drawn)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._live.stop()
        finally:  # Ctrl-C may come just here: what was drawn is wiped away, what was said must stay
            if self._open.strip():
                self._console.print(Markdown(self._open), soft_wrap=False)

    def waiting(self, told: str) -> None:
        """Say what happens before the first piece."""
        self._spinner.update(text=told)

    def feed(self, piece: str) -> None:
        """More of the answer."""
        complete, self._open = split(self._open + harmless(piece))
        if complete.strip():
            self._live.console.print(Markdown(complete), soft_wrap=False)
            self._live.console.print()

    def _drawn(self) -> RenderableType:
        """What is drawn anew, as often as the screen is: an answer's pieces come faster than that."""
        return Markdown(self._open) if self._open.strip() else self._spinner


def split(text: str) -> tuple[str, str]:
    """What can not change any more, and the rest: cut after the last empty line that is outside of a code block."""
    cut, offset, fence = 0, 0, ""
    for line in text.splitlines(keepends=True):
        mark = line.lstrip()[:3]
        if mark in FENCES and fence in ("", mark):
            fence = "" if fence else mark
        offset += len(line)
        if not fence and line.strip() == "" and line.endswith("\n"):
            cut = offset
    return text[:cut], text[cut:]
