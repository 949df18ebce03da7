"""The long text: Python's own language reference or a user's file, cut or repeated to a number of tokens.

Knows no HTTP: whoever calls it lends a function that counts the tokens of a string.
"""

from __future__ import annotations

import functools
import itertools
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from clients.demo.errors import TextError

DEFAULT_TOKENS = 100_000
PIECE = 4000  # characters counted at a time: short enough to end close to the wanted length

Count = Callable[[str], int]


@dataclass(frozen=True)
class Source:
    """Where the text comes from: all of it, what to call it, and whether it is read whole unless told otherwise."""

    body: str
    title: str
    whole: bool


def reference() -> str:
    """The language reference in the form that every Python ships."""
    return "\n\n".join(topics.values())


def load(path: Path) -> str:
    """The text of a user's file.

    Raises:
        TextError: it can not be read, is not UTF-8, or holds nothing
    """
    try:
        # utf-8-sig: a byte order mark is no part of the text.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not UTF-8 text: byte {error.start} does not belong there") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise TextError(f"{path} can not be read: {getattr(error, 'strerror', None) or error}") from None
    if not text.strip():
        raise TextError(f"{path} holds no text")
    return text


def source(path: Path | None) -> Source:
    """The user's file, or Python's language reference."""
    if path is None:
        return Source(reference(), "Python's language reference", whole=False)
    return Source(load(path), path.name, whole=True)


def long_text(source: Source, tokens: int | None, count: Count) -> str:
    """The text of the demo: `tokens` long or a little more; a file keeps its own length unless `tokens` is given."""
    if source.whole and tokens is None:
        return source.body
    return fit(source.body, tokens or DEFAULT_TOKENS, count)


def fit(body: str, tokens: int, count: Count) -> str:
    """`body` cut, or repeated and cut, to the first piece's end at which it has `tokens` tokens."""
    parts = list(pieces(body + "\n\n"))
    known = functools.cache(count)
    chosen: list[str] = []
    reached = 0
    for piece in itertools.cycle(parts):
        chosen.append(piece)
        reached += known(piece)
        if reached >= tokens:
            break
        if len(chosen) == len(parts) and not reached:
            raise TextError("the text has no tokens")
    return "".join(chosen)


def boundaries(text: str) -> list[int]:
    """Offsets inside `text` where a line of its own can be put: between paragraphs, else lines, sentences, words."""
    found: list[int] = []
    for pattern in (r"\n[ \t]*\n", r"\n", r"[.!?]\s+", r"\s+"):
        found = [m.end() for m in re.finditer(pattern, text) if m.end() < len(text)]
        # A book with one line per chapter has line ends, but too few of them to hide anything between.
        if len(found) > len(text) // 400:
            return found
    return found


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """`text` in pieces of about `size` characters that end where a line or a word ends; joined they give it back."""
    ends = boundaries(text)
    edges = [0]
    while edges[-1] < len(text):
        target = edges[-1] + size
        at = bisect_right(ends, target)
        end = ends[at - 1] if at and ends[at - 1] > edges[-1] else target
        edges.append(min(end, len(text)) if target < len(text) else len(text))
    return (text[start:stop] for start, stop in itertools.pairwise(edges))
