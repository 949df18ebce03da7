"""Texts of users in a rendered template: stand-ins while it renders, the literal texts afterwards.

Owns the guarantee that no text of theirs becomes a control token, wherever a template puts it. Knows no template.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from server.tokenizer import Segment

LOST = re.compile("mark[0-9a-f]{24}end", re.IGNORECASE)


class RewrittenError(ValueError):
    """The template rewrites texts (say, to upper case), so they could not be kept literal."""


class StandIns:
    """Stand-ins for the texts that need one.

    Args:
        needs: whether a text holds the name of a control token
    """

    def __init__(self, needs: Callable[[str], bool]) -> None:
        self._needs = needs
        self._texts: dict[str, str] = {}
        self._quoted: set[str] = set()

    def text(self, text: str) -> str:
        """`text`, or what stands for it until `split`."""
        return self._mark(text) if self._needs(text) else text

    def value(self, value: Any) -> Any:
        """The same for every text in a JSON value, keys too; templates write these as JSON, mostly."""
        if isinstance(value, Mapping):
            return {self.value(key): self.value(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(each) for each in value]
        if not isinstance(value, str) or not self._needs(value):
            return value
        mark = self._mark(value)
        self._quoted.add(mark)
        return mark

    def split(self, rendered: str) -> list[Segment]:
        """The rendered text, each stand-in replaced by its literal text.

        A template that drops a text drops its stand-in; one that rewrites it would lose it and is refused.
        """
        if not self._texts:
            return [Segment(rendered, control=True)]
        pattern = re.compile("|".join(self._texts))
        if LOST.search(pattern.sub("", rendered)):
            raise RewrittenError
        parts, place = [], 0
        for found in pattern.finditer(rendered):
            parts += [Segment(rendered[place : found.start()], control=True), Segment(self._literal(found))]
            place = found.end()
        return [part for part in [*parts, Segment(rendered[place:], control=True)] if part.text]

    def _mark(self, text: str) -> str:
        mark = f"mark{secrets.token_hex(12)}end"
        self._texts[mark] = text
        return mark

    def _literal(self, found: re.Match[str]) -> str:
        """The text, as JSON where the template wrote JSON."""
        text, rendered = self._texts[found[0]], found.string
        around = rendered[max(0, found.start() - 1) : found.start()] + rendered[found.end() : found.end() + 1]
        as_json = found[0] in self._quoted and around == '""'
        return json.dumps(text, ensure_ascii=False)[1:-1] if as_json else text
