"""What the server tells, as frozen dataclasses. Knows no HTTP; `cairn_client.reading` makes them from JSON.

Every one that comes from a body keeps it as `raw`: what a newer server tells is not lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
_NONE: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Session:
    """A text that grows on the server.

    Attributes:
        tokens: that it holds; created, used: seconds since 1970; parent: what it was forked from
        busy: whether a request runs in it; pinned: nothing of it is dropped to make room
        ttl_seconds: it is deleted after so long without use; None: as the server is set
        etag: what `if_match` takes; None where the answer had none, as in lists
        restored_tokens: of an imported session: how many need no computing
    """

    id: str
    tokens: int
    created: float
    used: float
    parent: str | None = None
    busy: bool = False
    pinned: bool = False
    ttl_seconds: float | None = None
    etag: str | None = None
    restored_tokens: int | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class SessionPage:
    """Some sessions, and whether there are more after the last."""

    data: tuple[Session, ...]
    has_more: bool
    last_id: str | None


@dataclass(frozen=True)
class SessionText:
    """A session's tokens [start_token, end_token), which are its characters [start_char, end_char)."""

    text: str
    start_token: int
    end_token: int
    start_char: int
    end_char: int
    etag: str | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of a request; `cached_tokens` is the part of the prompt that was not computed again."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went, in milliseconds on the server."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True)
class Passage:
    """A part of a session: its tokens, its characters, its text, and its share of the attention (0 to 1).

    `document` is the name of the one in which most of it lies, `page` the one on which it begins, where there are any.
    """

    start_token: int
    end_token: int
    start_char: int
    end_char: int
    text: str
    share: float
    document: str | None = None
    page: int | None = None


@dataclass(frozen=True)
class Audit:
    """Shares of exact attention that an answer read, as its samples tell (None without samples)."""

    mean: float | None
    lowest: float | None
    samples: int
    blocks_per_head: int | None


@dataclass(frozen=True)
class Retrieval:
    """What an answer has read: passages, most read first, and which part of its attention went where (sums to 1)."""

    passages: tuple[Passage, ...] = ()
    fetched: float | None = None
    sinks: float | None = None
    local: float | None = None
    estimated: float | None = None
    audit: Audit | None = None


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for; `arguments` is JSON as it wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Choice:
    """One answer of a request; `finish_reason` is stop, length or tool_calls."""

    index: int
    text: str
    finish_reason: str | None
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to a chat or a completion."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage | None = None
    timings: Timings | None = None
    retrieval: Retrieval | None = None
    session_id: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def text(self) -> str:
        """Of the first choice."""
        return self.choices[0].text if self.choices else ""

    @property
    def finish_reason(self) -> str | None:
        """Of the first choice."""
        return self.choices[0].finish_reason if self.choices else None

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Of the first choice."""
        return self.choices[0].tool_calls if self.choices else ()

    @property
    def passages(self) -> tuple[Passage, ...]:
        """What it read, if the request asked for provenance."""
        return self.retrieval.passages if self.retrieval else ()


@dataclass(frozen=True)
class Document:
    """A file as the server read it; the session holds it as tokens [start_token, end_token)."""

    name: str
    media_type: str
    characters: int
    pages: int | None
    start_token: int
    end_token: int
    encoding: str | None = None


@dataclass(frozen=True)
class Appended:
    """What reading into a session came to; `document` if it was one."""

    session: Session
    tokens: int
    usage: Usage | None
    timings: Timings | None
    document: Document | None = None


@dataclass(frozen=True)
class Turn:
    """One request that changed a session: tokens [start, answer) were given, [answer, end) generated."""

    index: int
    start_token: int
    answer_token: int
    end_token: int


@dataclass(frozen=True)
class Found:
    """The passages of a session that a query reads most."""

    passages: tuple[Passage, ...]
    usage: Usage | None


@dataclass(frozen=True)
class Model:
    """A model as it is served; `retrieval` tells how its memory is read."""

    id: str
    max_model_len: int | None
    parameters: int | None
    dtype: str | None
    retrieval: Mapping[str, Any]
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text, and what they spell if that was asked for."""

    ids: tuple[int, ...]
    max_model_len: int | None
    strings: tuple[str, ...] | None = None

    @property
    def count(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Health:
    """Whether the server is well; `status` is loading, ready, draining or failed."""

    ok: bool
    status: str
