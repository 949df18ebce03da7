"""Logs that hold nobody's texts: where an error happened, and of which kind it is, but not its words.

The words of an unexpected exception may quote what it failed on: a prompt, an answer, a key. Owns the format of logs.
"""

from __future__ import annotations

import copy
import logging
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import TypeAlias

from server.settings import Settings

FORMAT = "%(levelname)s %(name)s: %(message)s"
PLAIN = (OSError, ImportError, MemoryError, RuntimeError)
"""Errors of the machine and of torch: they speak of files and shapes."""

ExceptionInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class DiscreetFormatter(logging.Formatter):
    """Leaves out the words of exceptions."""

    def format(self, record: logging.LogRecord) -> str:
        fresh = copy.copy(record)
        fresh.exc_text = None  # as another handler may have written it
        return super().format(fresh)

    def formatException(self, ei: ExceptionInfo) -> str:  # noqa: N802 (logging's name)
        return "\n".join(_told(error) for error in _chain(ei[1]))


def configure(settings: Settings) -> None:
    """Log to stderr as the settings say."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT) if settings.log_prompts else DiscreetFormatter(FORMAT))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])


def _told(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__))
    words = str(error) if isinstance(error, PLAIN) else "(its words are not logged; --log-prompts logs them)"
    return f"Traceback (most recent call last):\n{frames}{type(error).__module__}.{type(error).__qualname__}: {words}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, the first cause first."""
    if error is not None:
        yield from _chain(error.__cause__ or (None if error.__suppress_context__ else error.__context__))
        yield error
