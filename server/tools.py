"""From a request's tools and its choice among them to what the model is told, the constraint, and the answer's parser.

Owns when an answer is held to a grammar: where a call is required, where a `strict` function may be called, where only
one call is allowed, and where text must have a form. Knows no HTTP and no engine thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import ApiError
from server.grammar import GrammarError, Grammars, json_rule, text_rule
from server.structured import FORMAT, MakeConstraint, compiled, constraint_of, format_rule, naming
from server.structured_schemas import ResponseFormat, StructuredOutputs
from server.tokenizer import TextTokenizer
from server.tool_formats import Function, ToolFormat, ToolParser
from server.tool_schemas import Tool, ToolChoice

NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Wanted:
    """What a request says about the form of its answer; the fields of chat completions."""

    tools: Sequence[Tool] = ()
    choice: ToolChoice | None = None
    parallel: bool = True
    response_format: ResponseFormat | None = None
    structured: StructuredOutputs | None = None

    @property
    def mode(self) -> str:
        return "none" if not self.tools else self.choice.mode if self.choice else "auto"

    @property
    def callable(self) -> list[tuple[int, Tool]]:
        """The tools that may be called, with their places among all."""
        names = self.choice.names if self.choice else None
        return [(at, tool) for at, tool in enumerate(self.tools) if names is None or tool.function.name in names]

    @property
    def several(self) -> bool:
        """Whether more than one call may come."""
        return self.parallel and not (self.choice and self.choice.one)


@dataclass(frozen=True)
class Form:
    """What the answers to one request are like.

    Attributes:
        constraint: makes what each answer must keep to; None leaves it free
        told: the tools that the model is told of, as chat templates take them
        revealed: control tokens that the parser must see
    """

    constraint: MakeConstraint | None = None
    told: tuple[dict[str, Any], ...] = ()
    revealed: frozenset[int] = frozenset()
    format: ToolFormat | None = None
    names: frozenset[str] = frozenset()

    def parser(self) -> ToolParser | None:
        """For one answer; None if nothing is to be found in it."""
        return None if self.format is None else self.format.parser(self.names)


class Forms:
    """Makes forms for a model.

    Args:
        format: how the model writes calls
    """

    def __init__(self, grammars: Grammars, tokenizer: TextTokenizer, format: ToolFormat) -> None:
        self._grammars, self._tokenizer, self._format = grammars, tokenizer, format

    def of(self, wanted: Wanted) -> Form:
        """The form of the answers; ApiError names what cannot be held. May take a second: not on the event loop."""
        if wanted.mode == "none":
            return Form(constraint_of(self._grammars, wanted.response_format, wanted.structured))
        if wanted.structured is not None:
            message = "structured_outputs: not together with tools, unless tool_choice is none"
            raise ApiError(400, message, "structured_outputs", "invalid_value")
        grammar = self._grammar(wanted)
        markers = map(self._tokenizer.control_token, self._format.markers)
        return Form(
            self._compiled(grammar, wanted) if grammar else None,
            tuple(tool.told() for tool in wanted.tools),
            frozenset(token for token in markers if token is not None),
            self._format,
            frozenset(tool.function.name for _, tool in wanted.callable),
        )

    def _grammar(self, wanted: Wanted) -> str | None:
        """What holds the answer; None where the model may say anything."""
        if wanted.mode == "required":
            return "start: calls\n" + self._format.calls(self._functions(wanted), wanted.several, self._spelled)
        rule = format_rule(wanted.response_format)
        if rule is not None and self._format.bare:
            message = "response_format: this model's calls look like JSON, too; set tool_choice to none or required"
            raise ApiError(400, message, "response_format", "invalid_value")
        if rule is not None:
            calls = self._format.calls(self._functions(wanted), wanted.several, self._spelled)
            return f"start: calls | form\nform: {rule}\n{calls}"
        if wanted.several and not any(tool.function.strict for _, tool in wanted.callable):
            return None
        return "start: mixed\n" + self._format.mixed(self._functions(wanted), wanted.several, self._spelled)

    def _compiled(self, grammar: str, wanted: Wanted) -> MakeConstraint:
        """The constraint; where there is none, the error names the schema that is to blame."""
        try:
            return self._grammars.compile(grammar)
        except GrammarError as error:
            if rule := format_rule(wanted.response_format):
                compiled(self._grammars, f"start: {rule}", FORMAT)
            for (at, _), function in zip(wanted.callable, self._functions(wanted), strict=True):
                compiled(self._grammars, f"start: {function.arguments}", _param(at))
            raise ApiError(400, f"tools: {error}", "tools", "invalid_value") from error

    def _functions(self, wanted: Wanted) -> list[Function]:
        """The functions as a grammar needs them; where the model may choose, only strict ones keep to their schemas."""
        held = wanted.mode == "required"
        return [
            Function(tool.function.name, self._arguments(tool, at, held or bool(tool.function.strict)))
            for at, tool in wanted.callable
        ]

    def _arguments(self, tool: Tool, at: int, held: bool) -> str:
        if not held:
            return json_rule({"type": "object"})
        with naming(_param(at)):
            return json_rule(_schema(tool.function.parameters))

    def _spelled(self, marker: str) -> str:
        token = self._tokenizer.control_token(marker)
        return text_rule(marker) if token is None else f"<[{token}]>"


def _param(at: int) -> str:
    return f"tools.{at}.function.parameters"


def _schema(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object."""
    if parameters is None:
        return NO_ARGUMENTS
    if parameters.get("type", "object") != "object":
        raise GrammarError('must have the type "object"')
    return {**parameters, "type": "object"}
