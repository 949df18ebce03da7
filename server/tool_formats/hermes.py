"""Hermes and Qwen: `<tool_call>`, a line of JSON, `</tool_call>`; text may stand around calls."""

from __future__ import annotations

from collections.abc import Sequence

from server.tool_formats.base import Call, Function, JsonCalls, Spell, ToolParser
from server.tool_formats.parsing import MarkedParser

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Hermes(JsonCalls):
    """See the module."""

    name = "hermes"
    markers = (OPEN, CLOSE)
    example = f'{OPEN}\n{{"name": "...", "arguments": {{...}}}}\n{CLOSE}'

    def fits(self, template: str) -> bool:
        """Not where the calls between these marks are no JSON (Qwen3-Coder, GLM)."""
        return OPEN in template and "<function=" not in template and "<arg_key>" not in template

    def written(self, calls: Sequence[Call]) -> str:
        return "\n".join(f"{OPEN}\n{self.spoken(call)}\n{CLOSE}" for call in calls)

    def calls(self, functions: Sequence[Function], several: bool, spell: Spell) -> str:
        more = ' ("\\n" call)*' if several else ""
        return f"calls: call{more}\ncall: {spell(OPEN)} rest\n{self._rest(functions, spell)}"

    def mixed(self, functions: Sequence[Function], several: bool, spell: Spell) -> str:
        lead = f"lead: TEXT {spell(OPEN)}" if spell(OPEN).startswith("<") else f"lead[lazy]: TEXT {spell(OPEN)}"
        mixed = "mixed: (lead rest)* tail" if several else "mixed: lead rest | tail"
        text = f"tail: TAIL\nTAIL: /(?s:.*)/ & ~/(?s:.*){OPEN}(?s:.*)/\nTEXT: /(?s:.*)/"
        return f"{mixed}\n{lead}\n{text}\n{self._rest(functions, spell)}"

    def _rest(self, functions: Sequence[Function], spell: Spell) -> str:
        return f'rest: "\\n" function "\\n" {spell(CLOSE)}\n{self.functions(functions)}'

    def parser(self, names: frozenset[str]) -> ToolParser:
        return HermesParser(OPEN, names, self.call_id)


class HermesParser(MarkedParser):
    """A call ends with its JSON; the mark that closes it is skipped, and may be missing."""

    def _inside(self, char: str) -> str:
        if not self._reader.done:
            self._read(char)
            return self._leave(again=not self._announced) if self._reader.failed else ""
        self._tail += char
        if CLOSE.startswith(self._tail.lstrip()):
            return self._leave(again=False) if self._tail.lstrip() == CLOSE else ""
        tail = self._tail
        self._leave(again=False)
        return "".join(map(self._outside, tail))

    def _enter(self) -> None:
        super()._enter()
        self._tail = ""
