"""Answers with calls in them, read piece by piece: what the parsers of all formats share.

Owns the numbering of calls, and the holding back of what may begin a marker, or of spaces that may stand before one.
"""

from __future__ import annotations

from collections.abc import Callable

from server.tool_formats.base import CallDelta, Parsed, merged
from server.tool_formats.json_call import CallReader


class CallParser:
    """Either outside of a call or within one; a subclass says what each character means there.

    What looks like a call and is none (no JSON, or no tool of the request) stays text.
    """

    def __init__(self, names: frozenset[str], call_id: Callable[[], str]) -> None:
        self._names, self._call_id = names, call_id
        self._held = ""  # not passed on yet: it may still belong to a call
        self._within = False
        self._announced = False  # the call being read has told its name
        self._reader = CallReader(names)
        self._count = 0
        self._deltas: list[CallDelta] = []

    @property
    def called(self) -> bool:
        return self._count > 0

    def push(self, text: str) -> Parsed:
        """What `text` makes certain."""
        said = "".join([self._inside(char) if self._within else self._outside(char) for char in text])
        return self._parsed(said)

    def finish(self) -> Parsed:
        """What waited: text that was no marker, or a call that never became one."""
        text = self._leave(again=not self._announced) if self._within else self._held
        return self._parsed("" if self.called and not text.strip() else text)

    def _parsed(self, text: str) -> Parsed:
        deltas, self._deltas = self._deltas, []
        return Parsed(text, merged(deltas))

    def _enter(self) -> None:
        """A call begins."""
        self._within, self._announced, self._reader = True, False, CallReader(self._names)

    def _leave(self, again: bool) -> str:
        """Back to text; `again` gives back what was read of the call, and what was held before it."""
        text = self._held + self._reader.raw if again else ""
        self._within, self._held = False, ""
        return text

    def _read(self, char: str) -> None:
        """One more character of a call as JSON."""
        piece = self._reader.push(char)
        if self._reader.name is not None:
            self._announce(self._reader.name)
        if piece:
            self._argue(piece)

    def _announce(self, name: str) -> None:
        if not self._announced:
            self._announced = True
            self._deltas.append(CallDelta(self._count, id=self._call_id(), name=name))
            self._count += 1

    def _argue(self, piece: str) -> None:
        self._deltas.append(CallDelta(self._count - 1, piece))

    def _outside(self, char: str) -> str:
        raise NotImplementedError

    def _inside(self, char: str) -> str:
        raise NotImplementedError


class MarkedParser(CallParser):
    """Calls stand behind a marker, text wherever it likes."""

    def __init__(self, marker: str, names: frozenset[str], call_id: Callable[[], str]) -> None:
        super().__init__(names, call_id)
        self._marker = marker

    def _outside(self, char: str) -> str:
        self._held += char
        if not self._held.endswith(self._marker):
            return self._certain()
        before = self._held[: -len(self._marker)]
        self._held = before[len(before.rstrip()) :] + self._marker
        self._enter()
        return before.rstrip()

    def _certain(self) -> str:
        """Text that is surely no part of a marker; spaces wait with what follows them."""
        lengths = range(min(len(self._marker), len(self._held)), 0, -1)
        begins = next((length for length in lengths if self._held.endswith(self._marker[:length])), 0)
        certain = self._held[: len(self._held) - begins].rstrip()
        self._held = self._held[len(certain) :]
        return certain
