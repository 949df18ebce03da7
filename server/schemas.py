"""What clients send: every field is honoured, or refused by name. Knows no engine and no text.

A parameter of OpenAI's that this server cannot honour is accepted only in the form that asks for nothing
(`modalities: ["text"]`, `verbosity: "medium"`); fields in no model here are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from server.structured_schemas import ResponseFormat, StructuredOutputs
from server.tool_schemas import MAX_CALLS, Choice, Legacy, ToolCall, Tools, check_choice
from server.wire import Wire as Wire

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 1000
MAX_MESSAGES = 4096
MAX_TOKENS = (1 << 31) - 1

Count = Annotated[int, Field(ge=0, le=MAX_TOKENS)]


def _stop_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _joined_text(value: Any) -> Any:
    """A message's content: a string, or OpenAI's list of parts, all of them text."""
    if isinstance(value, str) or not isinstance(value, list):
        return value
    parts = [part for part in value if isinstance(part, dict) and part.keys() == {"type", "text"}]
    if len(parts) != len(value) or any(part["type"] != "text" or not isinstance(part["text"], str) for part in parts):
        raise ValueError('every part must be {"type": "text", "text": "..."}: this server reads text only')
    return "".join(part["text"] for part in parts)


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) == {int}


def _prompt_list(value: Any) -> Any:
    """A completion's prompt as a list of prompts, each a string or a list of tokens."""
    if isinstance(value, str) or _is_tokens(value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(each, str) or _is_tokens(each) for each in value):
        return value
    raise ValueError("must be a string, a list of strings, a list of tokens or a list of such lists, and not empty")


Text = Annotated[str, BeforeValidator(_joined_text), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}]})]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
AnyPrompts = str | list[str] | list[int] | list[list[int]]
Prompts = Annotated[list[str | list[int]], BeforeValidator(_prompt_list, json_schema_input_type=AnyPrompts)]
StopList = Annotated[list[Stop], Field(max_length=MAX_STOPS)]
Stops = Annotated[StopList | None, BeforeValidator(_stop_list, json_schema_input_type=Stop | StopList | None)]


class Message(Wire):
    """One message of a conversation; the fields that may only be null come back in OpenAI's own answers."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=MAX_CALLS)
    content: Text | None = Field(default=None, validate_default=True)
    tool_call_id: str | None = Field(default=None, max_length=256, validate_default=True)
    name: str | None = Field(default=None, max_length=64)  # of the function, with the role tool
    refusal: None = None
    annotations: list[None] | None = Field(default=None, max_length=0)
    audio: None = None
    function_call: Legacy = None

    @field_validator("tool_calls")
    @classmethod
    def _the_assistants(cls, value: list[ToolCall] | None, info: ValidationInfo) -> list[ToolCall] | None:
        if value and info.data.get("role") != "assistant":
            raise ValueError("only an assistant calls tools")
        return value

    @field_validator("content")
    @classmethod
    def _something(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and not info.data.get("tool_calls"):
            raise ValueError("Field required")
        return value

    @field_validator("name")
    @classmethod
    def _of_a_function(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("role") != "tool":
            raise ValueError("only taken with the role tool")
        return value

    @field_validator("tool_call_id")
    @classmethod
    def _of_a_call(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is None) == (info.data.get("role") == "tool"):
            raise ValueError("names the call whose result this is: given exactly with the role tool")
        return value

    def rendered(self) -> dict[str, Any]:
        """As chat templates take it; OpenAI's newer name for `system` is unknown to them."""
        role = "system" if self.role == "developer" else self.role
        told: dict[str, Any] = {"role": role, "content": self.content or ""}
        if self.tool_calls:
            told["tool_calls"] = [call.model_dump(exclude={"index"}) for call in self.tool_calls]
        if self.role == "tool":
            told |= {"tool_call_id": self.tool_call_id} | ({"name": self.name} if self.name else {})
        return told


class StreamOptions(Wire):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class RetrievalOptions(Wire):
    """How the answer reads the memory, and whether it tells what it read."""

    blocks_per_head: int | None = Field(default=None, ge=0, le=4096)
    exact: bool = False
    provenance: bool = False
    passages: int = Field(default=5, ge=1, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    audit: bool = False
    min_mass: float | None = Field(default=None, gt=0, le=1)


class SamplingFields(Wire):
    """What every request for an answer has in common: the draw, the stream, the memory."""

    model: str | None = None
    stream: bool | None = False
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=MAX_TOKENS)
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=10)
    seed: int | None = Field(default=None, ge=-(1 << 63), le=(1 << 63) - 1)
    stop: Stops = None
    logit_bias: dict[str, float] | None = Field(default=None, max_length=1024)
    ignore_eos: bool = False
    stop_token_ids: list[Count] | None = Field(default=None, max_length=MAX_STOPS)
    session_id: str | None = Field(default=None, min_length=1, max_length=128)
    retrieval: RetrievalOptions | None = None
    return_progress: bool = False
    structured_outputs: StructuredOutputs | None = None
    # Harmless: nothing depends on them.
    user: str | None = Field(default=None, max_length=1024)
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = Field(default=None, max_length=1024)
    prompt_cache_key: str | None = Field(default=None, max_length=1024)
    # OpenAI's, which ask for what this server has not: null alone.
    moderation: None = None
    prompt_cache_options: None = None
    prompt_cache_retention: None = None

    @model_validator(mode="after")
    def _drawn(self) -> SamplingFields:
        if self.return_progress and not self.stream:
            raise ValueError("return_progress: only allowed when stream is true")
        for token in self.logit_bias or {}:
            if not token.isdecimal() or int(token) > MAX_TOKENS:
                raise ValueError(f"logit_bias: {token[:40]!r} is not a token id")
        return self

    @property
    def prompt_alternatives(self) -> int | None:
        """As `alternatives`, for the tokens of the prompt."""
        return None


class GenerationFields(SamplingFields):
    """What both kinds of completion have in common."""

    stream_options: StreamOptions | None = None
    n: int | None = Field(default=1, ge=1, le=1024)
    max_tokens: Count | None = None
    store: Literal[False] | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _consistent(self) -> GenerationFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only allowed when stream is true")
        return self

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(GenerationFields):
    """Body of /v1/chat/completions; in a session, `messages` are the new ones."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    modalities: list[Literal["text"]] | None = Field(default=None, max_length=1)
    tools: Tools = None
    tool_choice: Choice = None
    parallel_tool_calls: bool | None = None
    functions: Legacy = None
    function_call: Legacy = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only allowed when logprobs is true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens: contradicts max_completion_tokens")
        return self

    @model_validator(mode="after")
    def _known_tools(self) -> ChatRequest:
        check_choice(self.tools, self.tool_choice)
        return self

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report for each token; None reports no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationFields):
    """Body of /v1/completions; in a session, `prompt` is what is new."""

    prompt: Prompts
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = False
    best_of: Literal[1] | None = None
    suffix: None = None

    @property
    def prompt_alternatives(self) -> int | None:
        """What is repeated is scored, too."""
        return self.logprobs if self.echo else None

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class AppendRequest(Wire):
    """Body of /v1/sessions/{id}/append."""

    text: str
    stream: bool | None = False


class SessionRequest(Wire):
    """Body of /v1/sessions, and of PATCH /v1/sessions/{id}: what is left out stays as it is.

    A session with `ttl_seconds` is deleted after so long without use, 0 takes the limit away; a `pinned` one is never.
    """

    pinned: bool | None = None
    ttl_seconds: Annotated[float, Field(ge=0, le=10**9)] | None = None


class RewindRequest(Wire):
    """Body of /v1/sessions/{id}/rewind: the turn that is forgotten first, or how many tokens stay."""

    turn: Count | None = None
    tokens: Count | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> RewindRequest:
        if (self.turn is None) == (self.tokens is None):
            raise ValueError("turn: give either turn or tokens")
        return self


class SearchRequest(Wire):
    """Body of /v1/sessions/{id}/search."""

    query: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=8192)]
    passages: int = Field(default=5, ge=1, le=100)
    blocks_per_head: int | None = Field(default=None, ge=1, le=4096)


class TokenizeRequest(Wire):
    """Body of /tokenize: a text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)
    tools: Tools = None
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages")
        return self


class DetokenizeRequest(Wire):
    """Body of /detokenize."""

    model: str | None = None
    tokens: list[Count]
