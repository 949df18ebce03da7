"""The session that is talked in, and its last answer."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from cairn_client import Answer, AnswerStream, Cairn, Progress, Session, TextPiece
from rich.console import Console

from clients.terminal.connecting import sampling
from clients.terminal.markdown import Writing
from clients.terminal.screen import harmless


@dataclass
class Conversation:
    """What `cairn chat` is about; `rendered` is whether answers are shown as Markdown.

    `begun` are the ids of the sessions that were made in it.
    """

    cairn: Cairn
    session: Session
    console: Console
    options: Namespace
    rendered: bool
    begun: list[str]
    answer: Answer | None = None

    @property
    def tokens(self) -> int:
        """Of the session, as far as its answers tell."""
        usage = self.answer.usage if self.answer else None
        return usage.total_tokens if usage else self.session.tokens

    def open(self, session: Session) -> None:
        """Talk in another session, or in what has become of this one."""
        self.session, self.answer = session, None

    def ask(self, question: str) -> None:
        """Print the answer as it comes. Ctrl-C stops it, and the session keeps what was said."""
        wanted: dict[str, Any] = {"retrieval": {"provenance": True, "passages": self.options.passages}}
        with self.cairn.chat_stream(question, session=self.session, **sampling(self.options), **wanted) as stream:  # type: ignore[arg-type]
            try:
                self._write(stream)
                self.answer = stream.answer
            except KeyboardInterrupt:
                stream.close()
                self.console.print("\n(stopped; the session keeps what was said)", style="dim")
                self.open(self.cairn.sessions.get(self.session))

    def _write(self, stream: AnswerStream) -> None:
        if self.rendered:
            with Writing(self.console) as writing:
                for event in stream:
                    if isinstance(event, TextPiece):
                        writing.feed(event.text)
                    elif isinstance(event, Progress):
                        writing.waiting(f"reading {event.processed:,} of {event.total:,} tokens")
        else:
            for piece in stream.text():
                print(harmless(piece), end="", flush=True)
            print()
