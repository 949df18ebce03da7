"""Where lines come from: an editor with history and completion on a terminal, else standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from clients.terminal.chat.commands import COMMANDS

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

TAKES_FILE = ("/attach ", "/export ")


def piped() -> Iterator[str]:
    """The lines of standard input."""
    for line in sys.stdin:
        yield line.rstrip("\n")


def edited(folder: Path, status: Callable[[], str]) -> Iterator[str]:
    """Lines as the user edits them, until Ctrl-D; `status` is shown below. Alt-Enter begins a new line."""
    editor = _editor(folder, status)
    while True:
        try:
            yield editor.prompt("> ")
        except KeyboardInterrupt:
            continue  # the line is thrown away, as in a shell
        except EOFError:
            return


def _editor(folder: Path, status: Callable[[], str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history = folder / "history"
    history.touch(mode=0o600)
    return PromptSession(
        history=FileHistory(str(history)),
        auto_suggest=AutoSuggestFromHistory(),
        completer=_completer(),
        complete_while_typing=False,
        key_bindings=keys,
        prompt_continuation="  ",
        bottom_toolbar=status,
    )


def _completer() -> Completer:
    from prompt_toolkit.completion import Completer as Base
    from prompt_toolkit.completion import PathCompleter, WordCompleter
    from prompt_toolkit.document import Document as Text

    words = WordCompleter([f"/{name}" for name in COMMANDS], sentence=True)
    files = PathCompleter(expanduser=True)

    class Commands(Base):
        """Names of commands, and of files behind those that take one."""

        def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
            for start in TAKES_FILE:
                if document.text.startswith(start):
                    rest = document.text_before_cursor[len(start) :]
                    return files.get_completions(Text(rest, len(rest)), event)
            return words.get_completions(document, event) if document.text.startswith("/") else ()

    return Commands()
