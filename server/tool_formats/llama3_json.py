"""Llama 3: an answer that begins with `{"name": ..., "parameters": ...}` is a call; further ones follow behind `; `."""

from __future__ import annotations

from collections.abc import Sequence

from server.tool_formats.base import Call, Function, JsonCalls, Spell, ToolParser
from server.tool_formats.parsing import CallParser

TAG = "<|python_tag|>"
TEXT = r"/[ \t\r\n]*([^{ \t\r\n](?s:.*))?/"


class Llama3Json(JsonCalls):
    """See the module."""

    name = "llama3_json"
    key = "parameters"
    bare = True
    markers = (TAG,)
    example = '{"name": "...", "parameters": {...}}'

    def fits(self, template: str) -> bool:
        return '"parameters":' in template and "ipython" in template

    def written(self, calls: Sequence[Call]) -> str:
        return "; ".join(map(self.spoken, calls))

    def calls(self, functions: Sequence[Function], several: bool, spell: Spell) -> str:
        more = ' ("; " function)*' if several else ""
        return f"calls: function{more}\n{self.functions(functions)}"

    def mixed(self, functions: Sequence[Function], several: bool, spell: Spell) -> str:
        calls = self.calls(functions, several, spell)
        return f"mixed: ({spell(TAG)})? calls | text\ntext: TEXT\nTEXT: {TEXT}\n{calls}"

    def parser(self, names: frozenset[str]) -> ToolParser:
        return Llama3JsonParser(names, self.call_id)


class Llama3JsonParser(CallParser):
    """Whether an answer is calls or text is known at its first brace or letter."""

    _free = False  # it has been text, and stays so

    def _outside(self, char: str) -> str:
        if self._free:
            return char
        if char == "{" and not self._bare(self._held):
            self._enter()
            self._read(char)
            return ""
        self._held += char
        undecided = TAG.startswith(self._held.lstrip()) or not self._bare(self._held)
        return "" if undecided else self._text(self._held)

    def _bare(self, held: str) -> str:
        """Without what may stand before a call: spaces and the tag, or a semicolon behind another call."""
        between = " \t\r\n;" if self.called else " \t\r\n"
        return held.lstrip(between).removeprefix(TAG).strip(between)

    def _inside(self, char: str) -> str:
        self._read(char)
        if self._reader.failed:
            return self._text(self._leave(again=not self._announced))
        return self._leave(again=False) if self._reader.done else ""

    def _text(self, text: str) -> str:
        self._free, self._held = True, ""
        return text
