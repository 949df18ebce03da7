"""What a format of tool calls is: how a model writes calls, as a grammar and as text, and how they are read again.

Owns what the formats share. Knows no request, no HTTP and no model.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from server.grammar import text_rule

Spell = Callable[[str], str]
"""The Lark expression of a marker: its text, or its token where the vocabulary has a control token for it."""


@dataclass(frozen=True)
class Call:
    """A call in a conversation's past; `arguments` is what its JSON means, or its text if it is none."""

    id: str
    name: str
    arguments: Any


@dataclass(frozen=True)
class Function:
    """A tool as a grammar needs it: `arguments` is a Lark expression."""

    name: str
    arguments: str


@dataclass(frozen=True)
class CallDelta:
    """What a call gained: first its id and name, then pieces of its arguments' JSON."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Parsed:
    """What a piece of an answer made certain."""

    text: str = ""
    calls: tuple[CallDelta, ...] = ()


class ToolParser(Protocol):
    """Reads one answer piece by piece."""

    @property
    def called(self) -> bool:
        """Whether a call has begun."""
        ...

    def push(self, text: str) -> Parsed: ...
    def finish(self) -> Parsed: ...


class ToolFormat(Protocol):
    """One way to write calls.

    Attributes:
        name: in the setting
        markers: texts that stand for something; where they are control tokens, the parser sees them nevertheless
        example: a call, for the prompt of models whose template knows no tools
        bare: calls begin as JSON does, with no marker before them
    """

    @property
    def name(self) -> str: ...
    @property
    def markers(self) -> tuple[str, ...]: ...
    @property
    def example(self) -> str: ...
    @property
    def bare(self) -> bool: ...

    def fits(self, template: str) -> bool:
        """Whether a chat template teaches this format."""
        ...

    def call_id(self) -> str:
        """An id for a new call."""
        ...

    def past_id(self, given: str) -> str:
        """An id from a client as the template takes it."""
        ...

    def written(self, calls: Sequence[Call]) -> str:
        """Calls as the model wrote them."""
        ...

    def calls(self, functions: Sequence[Function], several: bool, spell: Spell) -> str:
        """Lark rules that define `calls`: one, or if `several` at least one."""
        ...

    def mixed(self, functions: Sequence[Function], several: bool, spell: Spell) -> str:
        """Lark rules that define `mixed`: free text in which each call that begins is one of `functions`."""
        ...

    def parser(self, names: frozenset[str]) -> ToolParser: ...


class JsonCalls:
    """What formats with `{"name": ..., "arguments": ...}` have in common; `key` is what they call the arguments."""

    key = "arguments"
    bare = False

    def call_id(self) -> str:
        return f"call_{uuid.uuid4().hex[:24]}"

    def past_id(self, given: str) -> str:
        return given

    def spoken(self, call: Call) -> str:
        """One call as JSON."""
        return json.dumps({"name": call.name, self.key: call.arguments}, ensure_ascii=False)

    def functions(self, functions: Sequence[Function]) -> str:
        """Lark rules that define `function`: a call of one of them as JSON."""
        lines = ["function: " + " | ".join(f"f{number}" for number in range(len(functions)))]
        for number, function in enumerate(functions):
            head = text_rule(f'{{"name": "{function.name}", "{self.key}": ')
            lines += [f'f{number}: {head} a{number} "}}"', f"a{number}: {function.arguments}"]
        return "\n".join(lines)


def merged(deltas: Sequence[CallDelta]) -> tuple[CallDelta, ...]:
    """One delta for each call."""
    whole: dict[int, CallDelta] = {}
    for delta in deltas:
        known = whole.get(delta.index, CallDelta(delta.index))
        arguments = known.arguments + delta.arguments
        whole[delta.index] = CallDelta(delta.index, arguments, known.id or delta.id, known.name or delta.name)
    return tuple(whole.values())
