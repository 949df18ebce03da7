"""The part of a passage that is worth a line or two: around the fact if it is in there. Knows no colours."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher

from clients.demo.facts import Fact

TELLING = 3  # characters of a place or a key that are hardly there by chance


@dataclass(frozen=True)
class Excerpt:
    """A passage's text in three parts, the middle one being the fact or what the passage has of it."""

    before: str
    fact: str
    after: str


def excerpt(passage: str, fact: Fact, width: int = 150) -> Excerpt:
    """About `width` characters of `passage`, white space made single spaces, the fact in the middle if it is there."""
    text = " ".join(passage.split())
    start, end = locate(text, fact) or (0, 0)
    room = max(0, width - (end - start))
    left = max(0, start - room // 2, start - room) if end else 0
    right = min(len(text), end + room - (start - left))
    before = ("…" if left else "") + text[left:start]
    return Excerpt(before, text[start:end], text[end:right] + ("…" if right < len(text) else ""))


def locate(text: str, fact: Fact) -> tuple[int, int] | None:
    """Where `text` tells the fact, or as much of its place or key as tells it from other facts.

    A passage is made of blocks, which begin and end anywhere: often it has a part of the sentence only.
    """
    told = fact.told
    common = SequenceMatcher(None, text, told, autojunk=False).find_longest_match()
    start, end = common.b, common.b + common.size
    telling = max(_overlap(start, end, told.index(part), len(part)) for part in (fact.city, fact.key))
    return (common.a, common.a + common.size) if telling >= TELLING else None


def _overlap(start: int, end: int, at: int, size: int) -> int:
    return min(end, at + size) - max(start, at)
