"""What the engine is asked and what it answers: plain values that cross from thread to thread.

`Generation` goes in; for each one a stream of events comes out: `Progress` while the prompt is read, with `Scored` if
its log-probabilities were asked for, `Token` for each generated token, then exactly one `Finished` or `Failed`.
Knows no text, no HTTP, no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.constraint import Constraint
from engine.errors import EngineError, InvalidParameter
from engine.sampling import SamplingParams


@dataclass(frozen=True)
class RetrievalParams:
    """How a request reads the session's memory.

    Attributes:
        blocks_per_head: far blocks each KV head may fetch per token; None takes the model's default
        top_p: stop fetching when this share of the attention is covered, as the landmarks estimate it; None takes
            the server's setting
        audit: report how much of the exact attention the answer's tokens read
        min_mass: raise the session's blocks_per_head until the audit finds this much
        exact: fetch every block, so that nothing is left out
        provenance: report which tokens the answer's heads read
        passages: how many passages to report at most
    """

    blocks_per_head: int | None = None
    exact: bool = False
    provenance: bool = False
    passages: int = 5
    top_p: float | None = None
    audit: bool = False
    min_mass: float | None = None

    def __post_init__(self) -> None:
        if self.blocks_per_head is not None and not 0 <= self.blocks_per_head <= 4096:
            raise InvalidParameter("retrieval.blocks_per_head", "must lie between 0 and 4096")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InvalidParameter("retrieval.top_p", "must lie above 0 and not above 1")
        if self.min_mass is not None and not 0 < self.min_mass <= 1:
            raise InvalidParameter("retrieval.min_mass", "must lie above 0 and not above 1")
        if self.min_mass is not None and self.top_p is not None:
            raise InvalidParameter("retrieval.top_p", "stops before min_mass may be reached; give one of them")
        if not 1 <= self.passages <= 100:
            raise InvalidParameter("retrieval.passages", "must lie between 1 and 100")


@dataclass(frozen=True)
class Search:
    """The prompt is read over a copy of the session, which does not change, to see what its tokens look up.

    Attributes:
        first, last: tokens [first, last) of the prompt are those that look
        held: tokens of the session, once it is known
    """

    first: int
    last: int
    held: int = 0


@dataclass(frozen=True)
class Generation:
    """One request to read `tokens` and generate.

    Attributes:
        id: unique among the running requests
        tokens: new text tokens, without landmarks; in a session, what is appended to it
        session_id: the session to continue; None reads a prompt of its own
        tenant: whose session and whose shared prefixes
        n: how many answers to one prompt; above 1 only without a session
        constraint: makes what each answer must keep to; None leaves them free
        search: look something up in the session, instead of continuing it
    """

    id: str
    tokens: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    retrieval: RetrievalParams = field(default_factory=RetrievalParams)
    session_id: str | None = None
    tenant: str = ""
    n: int = 1
    constraint: Callable[[], Constraint] | None = None
    search: Search | None = None


@dataclass(frozen=True)
class Quota:
    """What the sessions of a tenant may be together: text tokens, and how many; None sets no limit."""

    tokens: int | None = None
    sessions: int | None = None


@dataclass(frozen=True)
class Progress:
    """The prompt is being read; counts are text tokens of the whole session, `time_ms` since the start."""

    total: int
    cached: int
    processed: int
    time_ms: float


@dataclass(frozen=True)
class Token:
    """One generated token of choice `index`, with its log-probability and the most likely alternatives."""

    index: int
    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Scored:
    """The next tokens of the prompt, as Token tells those of an answer; the very first has no log-probability."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Passage:
    """Text tokens [start, end) of the session, and the share of attention which the answer gave them."""

    start: int
    end: int
    share: float


@dataclass(frozen=True)
class RetrievalReport:
    """Where the attention of the generated tokens went, over all layers and heads; shares sum to 1.

    Attributes:
        passages: the fetched blocks that were read most, neighbours joined, most read first
        fetched: share of all fetched blocks
        sinks: share of the always attended first blocks
        local: share of the recent blocks and the open one
        estimated: share of what was not read but estimated from landmarks
    """

    passages: tuple[Passage, ...]
    fetched: float
    sinks: float
    local: float
    estimated: float = 0.0


@dataclass(frozen=True)
class AuditReport:
    """How much of the exact attention the answer's tokens read, one layer and query head of each token.

    Attributes:
        mean, lowest: over the samples; None without any
        samples: how many; none if no layer of the model chooses what it reads
        blocks_per_head: with which the answer ended; None fetched everything
    """

    mean: float | None
    lowest: float | None
    samples: int
    blocks_per_head: int | None


@dataclass(frozen=True)
class Timing:
    """Seconds: waiting in the queue, bringing the session back from the disk and reading the prompt, generating."""

    queue: float
    prefill: float
    decode: float


@dataclass(frozen=True)
class Usage:
    """Text tokens: the whole session before the answer, the part of it that was not computed again, the answer."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Finished:
    """Choice `index` is complete: `reason` is `stop` (an end token), `length` or `cancelled`."""

    index: int
    reason: str
    usage: Usage
    timing: Timing
    retrieval: RetrievalReport | None = None
    audit: AuditReport | None = None


@dataclass(frozen=True)
class Failed:
    """The request ended in an error; nothing more comes."""

    error: EngineError


Event = Progress | Scored | Token | Finished | Failed
