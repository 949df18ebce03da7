"""What all formats have in common: what a reader takes and gives, and how it says that it cannot.

Imports nothing but the standard library: the worker loads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

PAGE_BREAK = "\f"
"""Between two pages, as in what pdftotext writes; in no page's own text."""


class Unreadable(Exception):
    """A file that gives no text; the message tells its owner what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """What one file may cost.

    Attributes:
        file_bytes: of the file
        text_bytes: of its text, in UTF-8
        pages: of a PDF
        seconds: of reading it
        memory_bytes: of the process that reads it
    """

    file_bytes: int
    text_bytes: int
    pages: int
    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Extracted:
    """The text of a file.

    Attributes:
        pages: how many it has; None for a format without pages
        encoding: how its bytes were read as text; None for a format that is not text
    """

    text: str
    pages: int | None = None
    encoding: str | None = None


class Reader(Protocol):
    """Reads files of one format."""

    def __call__(self, data: bytes, charset: str | None, limits: Limits) -> Extracted:
        """The text of a file; raises Unreadable.

        Args:
            charset: the encoding that its sender names, if any
        """
