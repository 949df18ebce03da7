"""Mistral: `[TOOL_CALLS]` and a list of calls as JSON; later models write `[TOOL_CALLS]name[ARGS]{...}` for each."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Sequence

from server.tool_formats.base import Call, Function, JsonCalls, Spell, ToolParser
from server.tool_formats.json_call import SPACES, CallReader
from server.tool_formats.parsing import MarkedParser

MARK, ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
ID_LENGTH = 9  # its templates refuse others


class Mistral(JsonCalls):
    """See the module."""

    name = "mistral"
    markers = (MARK, ID, ARGS)
    example = f'{MARK}[{{"name": "...", "arguments": {{...}}}}]'

    def fits(self, template: str) -> bool:
        return MARK in template

    def call_id(self) -> str:
        return uuid.uuid4().hex[:ID_LENGTH]

    def past_id(self, given: str) -> str:
        """Other servers' ids become ones of nine letters, equal ones equal."""
        fits = re.fullmatch(f"[a-zA-Z0-9]{{{ID_LENGTH}}}", given)
        return given if fits else hashlib.sha256(given.encode()).hexdigest()[:ID_LENGTH]

    def written(self, calls: Sequence[Call]) -> str:
        return f"{MARK}[{', '.join(map(self.spoken, calls))}]"

    def calls(self, functions: Sequence[Function], several: bool, spell: Spell) -> str:
        return f"calls: {spell(MARK)} rest\n{self._rest(functions, several)}"

    def mixed(self, functions: Sequence[Function], several: bool, spell: Spell) -> str:
        lead = f"lead: TEXT {spell(MARK)}" if spell(MARK).startswith("<") else f"lead[lazy]: TEXT {spell(MARK)}"
        text = r"TAIL: /(?s:.*)/ & ~/(?s:.*)\[TOOL_CALLS\](?s:.*)/" + "\ntail: TAIL\nTEXT: /(?s:.*)/"
        return f"mixed: lead rest | tail\n{lead}\n{text}\n{self._rest(functions, several)}"

    def _rest(self, functions: Sequence[Function], several: bool) -> str:
        more = ' (", " function)*' if several else ""
        return f'rest: "[" function{more} "]"\n{self.functions(functions)}'

    def parser(self, names: frozenset[str]) -> ToolParser:
        return MistralParser(MARK, names, self.call_id)


class MistralParser(MarkedParser):
    """Behind the marker: a list, or a name and an object."""

    def _enter(self) -> None:
        super()._enter()
        self._seen = ""  # all since the marker

    def _inside(self, char: str) -> str:
        self._seen += char
        listed = self._seen.lstrip().startswith("[")
        if self._reader.raw and not self._reader.done:
            return self._go_on(char, listed)
        if char == "{":
            return self._begin(listed)
        if listed and char == "]":
            return self._leave(again=False)
        stray = listed and char not in SPACES + "[,"
        return self._give_back() if stray else ""

    def _begin(self, listed: bool) -> str:
        """At a brace: a call of the list, or the arguments of a call whose name has been read."""
        if listed:
            self._reader = CallReader(self._names)
            self._announced = False
        else:
            name = self._seen[:-1].partition(ARGS)[0].partition(ID)[0].strip()
            for char in f'{{"name": {json.dumps(name)}, "arguments": ':
                self._read(char)
        return self._go_on("{", listed)

    def _go_on(self, char: str, listed: bool) -> str:
        self._read(char)
        if self._reader.failed:
            return self._give_back()
        if not listed and self._reader.settled:  # the object has ended, and with it the call
            return self._leave(again=False)
        return ""

    def _leave(self, again: bool) -> str:
        """What is given back is what was said, since a call without a list is read as one with."""
        text = self._held + self._seen if again else ""
        super()._leave(again=False)
        return text

    def _give_back(self) -> str:
        return self._leave(again=not self._announced)
