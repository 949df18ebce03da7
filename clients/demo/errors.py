"""What can go wrong before an answer can be judged; what the client raises for a running server comes on top.

DemoError
├── TextError     the text is missing, not UTF-8, or too short for the facts
└── ServerError   the server process ended by itself, or was never ready; carries the end of its log
"""

from __future__ import annotations


class DemoError(Exception):
    """The demo can not go on; its message is for the user."""


class TextError(DemoError):
    """The text is missing, not UTF-8, or too short for the facts."""


class ServerError(DemoError):
    """The server process ended by itself or was never ready.

    Attributes:
        log: the last lines that it wrote
    """

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log
