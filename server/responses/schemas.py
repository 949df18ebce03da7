"""What clients send to /v1/responses: every field is honoured, or refused by name. Knows no engine and no text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from server.schemas import MAX_MESSAGES, Count, SamplingFields, Wire
from server.structured_schemas import JsonSchemaFormat, ResponseFormat
from server.tool_schemas import MAX_TOOLS, Choice, FunctionDefinition, Name, Tool, check_choice
from server.tools import Wanted

LOGPROBS = "message.output_text.logprobs"
PARTS = ("input_text", "output_text", "text")
PART_FIELDS = {"type", "text", "annotations", "logprobs"}


def _input_list(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _joined_parts(value: Any) -> Any:
    """A message's content: a string, or OpenAI's list of parts, all of them text."""
    if isinstance(value, str) or not isinstance(value, list):
        return value
    for part in value:
        if not (isinstance(part, dict) and part.get("type") in PARTS and part.keys() <= PART_FIELDS):
            raise ValueError('every part must be {"type": "input_text", "text": "..."}: this server reads text only')
        if not isinstance(part.get("text"), str):
            raise ValueError("every part must have a text")
    return "".join(part["text"] for part in value)


Content = Annotated[
    str, BeforeValidator(_joined_parts), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}]})
]
Status = Literal["in_progress", "completed", "incomplete"]
CallId = Annotated[str, Field(min_length=1, max_length=256)]


class InputItem(Wire):
    """What all items have; what comes back in our own answers may stay in it."""

    id: str | None = Field(default=None, min_length=1, max_length=128)
    status: Status | None = None


class InputMessage(InputItem):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    phase: None = None


class InputCall(InputItem):
    """A call of an earlier answer; `arguments` is JSON as a text."""

    type: Literal["function_call"]
    call_id: CallId
    name: Name
    arguments: str
    caller: None = None
    namespace: None = None


class InputResult(InputItem):
    """What a call returned."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Content
    name: Name | None = None
    caller: None = None
    namespace: None = None


def _kind(value: Any) -> str | None:
    return value.get("type") or "message" if isinstance(value, dict) else None


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputResult, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type="unknown_item",
        custom_error_message="must be a message, a function_call or a function_call_output",
    ),
]


class StreamOptions(Wire):
    include_obfuscation: Literal[False] | None = None


class TextFormat(Wire):
    """As chat's `response_format`, with the schema's fields beside the type."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(default=None, pattern="^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _one_schema(self) -> TextFormat:
        if (self.type == "json_schema") != (self.name is not None and self.schema_ is not None):
            raise ValueError("name and schema: given exactly when type is json_schema")
        return self

    def as_chat_s(self) -> ResponseFormat:
        if self.type != "json_schema":
            return ResponseFormat(type=self.type)
        held = JsonSchemaFormat(name=str(self.name), schema=self.schema_)
        return ResponseFormat(type="json_schema", json_schema=held)


class TextOptions(Wire):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Wire):
    """Accepted where it asks for none: the models that this server knows do not tell it apart."""

    effort: Literal["none"] | None = None
    summary: None = None
    generate_summary: None = None


class FunctionTool(FunctionDefinition):
    """As chat's tools, with the function's fields beside the type."""

    type: Literal["function"]

    def as_chat_s(self) -> Tool:
        return Tool(type="function", function=FunctionDefinition(**self.model_dump(exclude={"type"})))


def _choice_as_chat_s(value: Any) -> Any:
    match value:
        case {"type": "function", "name": str(name), **others}:
            return {"type": "function", "function": {"name": name}, **others}
        case {"type": "allowed_tools", "mode": mode, "tools": [*tools], **others}:
            allowed = {"mode": mode, "tools": list(map(_choice_as_chat_s, tools))}
            return {"type": "allowed_tools", "allowed_tools": allowed, **others}
    return value


class ResponseRequest(SamplingFields):
    """Body of /v1/responses."""

    input: Annotated[list[Item], BeforeValidator(_input_list)] = Field(min_length=1, max_length=MAX_MESSAGES)
    instructions: str | None = None
    previous_response_id: str | None = Field(default=None, min_length=1, max_length=128)
    max_output_tokens: Annotated[Count, Field(ge=1)] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = Field(default=None, max_length=16)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    store: bool | None = True
    stream_options: StreamOptions | None = None
    truncation: Literal["disabled"] | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: Annotated[Choice, BeforeValidator(_choice_as_chat_s)] = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = Field(default=None, ge=0)  # of tools that the server runs: there is none
    # Accepted only where they ask for nothing.
    reasoning: Reasoning | None = None
    background: Literal[False] | None = None
    context_management: list[None] | None = Field(default=None, max_length=0)
    access_programs: None = None
    background_options: None = None
    conversation: None = None
    image: None = None
    prompt: None = None

    @model_validator(mode="after")
    def _consistent(self) -> ResponseRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only allowed when stream is true")
        if self.top_logprobs and LOGPROBS not in (self.include or ()):
            raise ValueError(f'top_logprobs: needs include: ["{LOGPROBS}"], or nobody would see them')
        if self.session_id is not None and self.previous_response_id is not None:
            raise ValueError("previous_response_id: a response goes on from it or from session_id, not from both")
        check_choice(self.chat_tools, self.tool_choice)
        return self

    @property
    def keeps(self) -> bool:
        """Whether the response is to be stored."""
        return self.store is not False

    @property
    def chat_tools(self) -> list[Tool]:
        return [tool.as_chat_s() for tool in self.tools or ()]

    @property
    def wanted(self) -> Wanted:
        """What is said about the form of the answer."""
        held = self.text.format.as_chat_s() if self.text and self.text.format else None
        parallel = self.parallel_tool_calls is not False
        return Wanted(self.chat_tools, self.tool_choice, parallel, held, self.structured_outputs)

    @property
    def told(self) -> list[dict[str, Any]]:
        """The tools that the model is told of."""
        return [] if self.wanted.mode == "none" else [tool.model_dump() for tool in self.tools or ()]

    @property
    def choices(self) -> int:
        return 1

    @property
    def limit(self) -> int | None:
        return self.max_output_tokens

    @property
    def include_usage(self) -> bool:
        return False  # a response tells it in any case

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report for each token; None reports no log-probabilities."""
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None
