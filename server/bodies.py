"""What the server answers, as types: they make the OpenAPI document, and tests hold answers against them.

Owns nothing that runs: bodies are made where they are known (server.shapes, the routes). Optional is what is not
always there.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class Error(BaseModel):
    """What went wrong; `param` names the field to change. Some errors tell more, as `limit` and `wanted`."""

    message: str
    type: str
    param: str | None
    code: str | None
    limit: int = 0
    wanted: int = 0
    limited: str = ""
    block: int = 0


class ErrorBody(BaseModel):
    error: Error


# -- answers of the model ------------------------------------------------------------------------------------


class PromptDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Timings(BaseModel):
    queue_ms: float
    prefill_ms: float
    decode_ms: float


class Passage(BaseModel):
    start_token: int
    end_token: int
    start_char: int
    end_char: int
    text: str
    share: float
    document: str = ""
    page: int | None = None


class Audit(BaseModel):
    mean: float | None
    lowest: float | None
    samples: int
    blocks_per_head: int | None


class Retrieval(BaseModel):
    """What an answer read; each part is there if it was asked for."""

    passages: list[Passage] = []
    fetched: float = 0
    sinks: float = 0
    local: float = 0
    estimated: float = 0
    audit: Audit | None = None


class TokenPiece(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ScoredPiece(TokenPiece):
    top_logprobs: list[TokenPiece]


class ChatLogprobs(BaseModel):
    content: list[ScoredPiece]
    refusal: None


class CalledFunction(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] = []


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class _Answer(BaseModel):
    id: str
    created: int
    model: str
    usage: Usage
    timings: Timings
    retrieval: Retrieval | None = None


class ChatCompletion(_Answer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class Logprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(_Answer):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class InputDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Response(BaseModel):
    """A response: what was asked, with what was left out filled in, and the items of the answer."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    model: str
    error: dict[str, str] | None
    incomplete_details: dict[str, str] | None
    output: list[dict[str, Any]]
    usage: ResponseUsage | None
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, None]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    user: str | None
    session_id: str | None
    timings: Timings | None = None
    retrieval: Retrieval | None = None


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(BaseModel):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


# -- models and tokens ---------------------------------------------------------------------------------------


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    parameters: int
    dtype: str
    retrieval: dict[str, Any]


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class Tokens(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] = []


class Prompt(BaseModel):
    prompt: str


# -- sessions ------------------------------------------------------------------------------------------------


class Session(BaseModel):
    id: str
    object: Literal["session"]
    tokens: int
    created: int
    used: int
    parent: str | None
    busy: bool
    pinned: bool
    ttl_seconds: float | None


class SessionList(BaseModel):
    object: Literal["list"]
    data: list[Session]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Turn(BaseModel):
    index: int
    start_token: int
    answer_token: int
    end_token: int


class TurnList(BaseModel):
    object: Literal["list"]
    data: list[Turn]


class SessionText(BaseModel):
    id: str
    object: Literal["session.text"]
    start_token: int
    end_token: int
    start_char: int
    end_char: int
    text: str


class AppendedSession(Session):
    appended_tokens: int
    usage: Usage
    timings: Timings


class Document(BaseModel):
    name: str
    media_type: str
    encoding: str | None
    characters: int
    pages: int | None
    start_token: int
    end_token: int


class SessionWithDocument(AppendedSession):
    document: Document


class ImportedSession(Session):
    restored_tokens: int


class SessionSearch(BaseModel):
    object: Literal["session.search"]
    session_id: str
    passages: list[Passage]
    usage: Usage
    timings: Timings


class DeletedSession(BaseModel):
    id: str
    object: Literal["session.deleted"]
    deleted: Literal[True]


# -- the server itself ---------------------------------------------------------------------------------------


class Health(BaseModel):
    status: Literal["loading", "ready", "draining", "failed"]
    error: str = ""


class Version(BaseModel):
    version: str


class KeyUse(BaseModel):
    id: str
    expires: int | None


class TenantUsage(BaseModel):
    requests: int
    refused: int
    prompt_tokens: int
    completion_tokens: int
    running: int


class Tenant(BaseModel):
    object: Literal["tenant"]
    name: str
    keys: list[KeyUse]
    limits: dict[str, int | None]
    sessions: int
    session_tokens: int
    usage: TenantUsage


class TenantList(BaseModel):
    object: Literal["list"]
    data: list[Tenant]


class LoadedKeys(BaseModel):
    object: Literal["keys"]
    keys: int
    tenants: int


class Draining(BaseModel):
    status: Literal["draining"]
    running: int
