"""A call written as JSON, read character by character: the name first, then the arguments as they come.

Owns that reading. What stands around a call is the formats'.
"""

from __future__ import annotations

import json
from enum import Enum

ARGUMENTS = ("arguments", "parameters")
SPACES = " \t\r\n"


class At(Enum):
    """Where in the object the reading is."""

    START = "before the brace"
    KEY = "before a key, or the end"
    COLON = "before the colon"
    VALUE = "before or in a value"
    AFTER = "after a value"
    DONE = "after the object"
    FAILED = "this is no call"


class CallReader:
    """Reads `{"name": "...", "arguments": {...}}`, in any order; other keys are skipped.

    Attributes:
        raw: all that was read, for the case that it is no call
        name: the function, once it is known to be one of `names`
    """

    def __init__(self, names: frozenset[str]) -> None:
        self.raw = ""
        self.name: str | None = None
        self._names = names
        self._at = At.START
        self._key = ""
        self._part = ""  # of a key or a value that is being read
        self._depth, self._quoted, self._escaped = 0, False, False
        self._told = False  # whether arguments have come
        self._waiting = ""  # arguments that came before the name

    @property
    def done(self) -> bool:
        return self._at is At.DONE

    @property
    def settled(self) -> bool:
        """Whether a value has just ended."""
        return self._at is At.AFTER

    @property
    def failed(self) -> bool:
        return self._at is At.FAILED

    def push(self, char: str) -> str:
        """The piece of arguments that `char` makes certain."""
        self.raw += char
        piece = self._step(char)
        if self.done and self.name is None:
            self._at = At.FAILED
        if self.done and not self._told:
            piece = "{}"
        return self._release(piece)

    def _release(self, piece: str) -> str:
        """Arguments wait for the name."""
        self._waiting += piece
        if self.name is None:
            return ""
        piece, self._waiting = self._waiting, ""
        return piece

    def _step(self, char: str) -> str:
        if self._part or (self._at is At.VALUE and char not in SPACES):
            return self._collect(char)
        if char in SPACES:
            return ""
        if self._at is At.KEY and char == '"':
            return self._collect(char)
        following = {(At.START, "{"): At.KEY, (At.COLON, ":"): At.VALUE, (At.AFTER, ","): At.KEY}
        following |= {(At.KEY, "}"): At.DONE, (At.AFTER, "}"): At.DONE}
        self._at = following.get((self._at, char), At.FAILED)
        return ""

    def _collect(self, char: str) -> str:
        """One more character of a key or a value."""
        if self._depth == 0 and not self._quoted and self._part and char in ",} \t\r\n":  # after a number or a word
            piece = self._close()
            return piece + self._step(char)
        self._part += char
        self._track(char)
        streams = self._at is At.VALUE and self._key in ARGUMENTS and self._part[0] == "{"
        self._told = self._told or streams
        if self._depth == 0 and not self._quoted and char in '"}]':
            return self._close() or (char if streams else "")
        return char if streams else ""

    def _track(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._quoted:
            self._escaped, self._quoted = char == "\\", char != '"'
        elif char in '"':
            self._quoted = True
        else:
            self._depth += (char in "{[") - (char in "}]")

    def _close(self) -> str:
        """The key or the value is whole."""
        part, self._part = self._part, ""
        if self._at is At.KEY:
            self._key, self._at = str(_value(part)), At.COLON
            return ""
        self._at = At.AFTER
        if self._key == "name":
            self._call(_value(part))
        elif self._key in ARGUMENTS and part[0] != "{":
            return self._other(_value(part))
        return ""

    def _call(self, name: object) -> None:
        if isinstance(name, str) and name in self._names and self.name is None:
            self.name = name
        else:
            self._at = At.FAILED

    def _other(self, arguments: object) -> str:
        """Arguments that are no object: their JSON as a text, or nothing."""
        self._told = True
        return arguments if isinstance(arguments, str) else "{}"


def _value(part: str) -> object:
    try:
        value: object = json.loads(part)
        return value
    except (ValueError, RecursionError):
        return None
