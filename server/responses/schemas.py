"""What clients send to /v1/responses: every field is honoured, or refused by name. Knows no engine and no text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from server.schemas import MAX_MESSAGES, Count, SamplingFields, TextFormat, Wire

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


class InputMessage(Wire):
    """One message of the input; what comes back in our own answers (`id`, `status`) may stay in it."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: str | None = Field(default=None, max_length=128)
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: None = None


class StreamOptions(Wire):
    include_obfuscation: Literal[False] | None = None


class TextOptions(Wire):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Wire):
    """Accepted where it asks for none: the models that this server knows do not tell it apart."""

    effort: Literal["none"] | None = None
    summary: None = None
    generate_summary: None = None


class ResponseRequest(SamplingFields):
    """Body of /v1/responses."""

    input: Annotated[list[InputMessage], BeforeValidator(_input_list)] = Field(min_length=1, max_length=MAX_MESSAGES)
    instructions: str | None = None
    previous_response_id: str | None = Field(default=None, min_length=1, max_length=128)
    max_output_tokens: Annotated[Count, Field(ge=1)] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = Field(default=None, max_length=16)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    store: bool | None = True
    stream_options: StreamOptions | None = None
    truncation: Literal["disabled"] | None = None
    # Accepted only where they ask for nothing.
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    background: Literal[False] | None = None
    tools: list[None] | None = Field(default=None, max_length=0)
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = Field(default=None, ge=0)
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
        return self

    @property
    def keeps(self) -> bool:
        """Whether the response is to be stored."""
        return self.store is not False

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
