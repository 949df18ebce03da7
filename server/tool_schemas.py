"""What clients send about tools: definitions, the choice among them, and the calls of earlier answers.

Owns the fields' shape and what can be said about them alone. Knows no grammar and no template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from server.json_schema import SchemaError, check_bounds
from server.wire import Wire

MAX_TOOLS, MAX_CALLS = 128, 128

Name = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class FunctionDefinition(Wire):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Name
    description: str | None = Field(default=None, max_length=1 << 17)
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _bounded(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            check_bounds(schema or {})
        except SchemaError as error:
            raise ValueError(str(error)) from error
        return schema


class Tool(Wire):
    type: Literal["function"]
    function: FunctionDefinition

    def told(self) -> dict[str, Any]:
        """As chat templates take it."""
        told = self.function.model_dump(exclude_none=True, exclude={"strict"})
        return {"type": "function", "function": {"parameters": {"type": "object", "properties": {}}, **told}}


class FunctionCall(Wire):
    """`arguments` is JSON as a text, as the model wrote it."""

    name: Name
    arguments: str


class ToolCall(Wire):
    """A call of an earlier answer."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"]
    function: FunctionCall
    index: int | None = None  # of streams; some clients send it back


class ToolChoice(Wire):
    """`mode` says whether to call, `names` which functions alone may be called, `one` that there is a single call."""

    mode: Literal["none", "auto", "required"]
    names: list[Name] | None = None
    one: bool = False


def _choice(value: Any) -> Any:
    """OpenAI's spellings: a mode, a function, or several of which some may be called; with no field beside."""
    match value:
        case "none" | "auto" | "required":
            return {"mode": value}
        case {"type": "function", "function": {"name": str(name), **more}, **others} if not more | others:
            return {"mode": "required", "names": [name], "one": True}
        case {"type": "allowed_tools", "allowed_tools": dict(allowed), **others} if not others:
            return _allowed(allowed)
        case None | ToolChoice():
            return value
    raise ValueError('must be "none", "auto", "required" or {"type": "function", "function": {"name": "..."}}')


def _allowed(value: Any) -> dict[str, Any]:
    match value:
        case {"mode": "auto" | "required" as mode, "tools": [*tools], **others} if not others:
            return {"mode": mode, "names": [_name(tool) for tool in tools]}
    raise ValueError('must have as allowed_tools {"mode": "auto" or "required", "tools": [...]}')


def _name(tool: Any) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name), **more}, **others} if not more | others:
            return name
    raise ValueError('every allowed tool must be {"type": "function", "function": {"name": "..."}}')


def _use_tools(value: Any) -> None:
    if value is not None:
        raise ValueError("is the old name of tools and tool_choice; use these")


Tools = Annotated[list[Tool] | None, Field(max_length=MAX_TOOLS)]
Choice = Annotated[
    ToolChoice | None,
    BeforeValidator(_choice),
    WithJsonSchema({"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object"}]}),
]
Legacy = Annotated[None, BeforeValidator(_use_tools), WithJsonSchema({"type": "null"})]


def check_choice(tools: Sequence[Tool] | None, choice: ToolChoice | None) -> None:
    """ValueError for names that are told twice, or chosen and not there."""
    names = [tool.function.name for tool in tools or ()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"tools: two functions are named {twice[0]!r}")
    if choice is None:
        return
    if not names and choice.mode != "none" and (choice.mode == "required" or choice.names):
        raise ValueError("tool_choice: only allowed when tools are given")
    unknown = [name for name in choice.names or () if name not in names]
    if unknown:
        raise ValueError(f"tool_choice: there is no function {unknown[0]!r} among the tools")
    if choice.names == []:
        raise ValueError("tool_choice: allows no tool at all")
