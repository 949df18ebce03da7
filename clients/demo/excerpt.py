"""The part of a passage that is worth a line or two: around the fact if it is in there. Knows no colours."""

from __future__ import annotations

from dataclasses import dataclass

ENOUGH = 8  # characters of a fact that make it recognisable where a passage begins or ends inside it


@dataclass(frozen=True)
class Excerpt:
    """A passage's text in three parts, the middle one being the fact or what the passage has of it."""

    before: str
    fact: str
    after: str


def excerpt(passage: str, told: str, width: int = 150) -> Excerpt:
    """About `width` characters of `passage`, white space made single spaces, `told` in the middle if it is there."""
    text = " ".join(passage.split())
    start, end = locate(text, told) or (0, 0)
    room = max(0, width - (end - start))
    left = max(0, start - room // 2, start - room) if end else 0
    right = min(len(text), end + room - (start - left))
    before = ("…" if left else "") + text[left:start]
    return Excerpt(before, text[start:end], text[end:right] + ("…" if right < len(text) else ""))


def locate(text: str, told: str) -> tuple[int, int] | None:
    """Where `told` is in `text`: whole, or its beginning at the end of `text`, or its end at the beginning."""
    at = text.find(told)
    if at >= 0:
        return at, at + len(told)
    for size in range(len(told) - 1, ENOUGH - 1, -1):
        if text.endswith(told[:size]):
            return len(text) - size, len(text)
        if text.startswith(told[-size:]):
            return 0, size
    return None
