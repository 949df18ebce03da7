"""What a request may ask for, by the names of the server's API (its docs/api.md tells ranges and meanings)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

Message = Mapping[str, Any]
"""`{"role": "user", "content": "…"}`, as OpenAI has it."""


class RetrievalOptions(TypedDict, total=False):
    """How an answer reads the memory, and whether it tells what it read."""

    blocks_per_head: int
    exact: bool
    provenance: bool
    passages: int
    top_p: float
    audit: bool
    min_mass: float


class Options(TypedDict, total=False):
    """What chats and completions have in common; what is left out is the server's default."""

    model: str
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[str, float]
    n: int
    user: str
    metadata: Mapping[str, str]
    retrieval: RetrievalOptions
    structured_outputs: Mapping[str, Any]
    extra_body: Mapping[str, Any]
    """Fields that this client has no name for."""


class ChatOptions(Options, total=False):
    """Of chats alone."""

    logprobs: bool
    top_logprobs: int
    response_format: Mapping[str, Any]
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool


class CompletionOptions(Options, total=False):
    """Of completions alone."""

    logprobs: int
    echo: bool
