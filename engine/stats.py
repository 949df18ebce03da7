"""What the engine tells about itself: a snapshot on request, and a report after each step."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TierStats:
    """One storage tier: bytes and blocks in use, and its capacity in bytes."""

    used_bytes: int
    capacity_bytes: int
    blocks: int


@dataclass(frozen=True)
class EngineStats:
    """The engine at one moment.

    Attributes:
        running, waiting: requests
        sessions: how many sessions are in each state: `active` (a request runs in it) and `idle`
        tiers: storage by tier name
    """

    running: int
    waiting: int
    sessions: dict[str, int]
    tiers: dict[str, TierStats]


@dataclass
class StepReport:
    """One forward pass.

    Attributes:
        phase: `prefill` if any prompt was read in it, else `decode`
        prefill_tokens, decode_tokens: text tokens
        seconds: the whole step
        retrieval_seconds: index scan and selection, over all layers
        blocks_selected: far blocks fetched, over all tokens, layers and KV heads
        queries: how many (token, layer, KV head) chose them
        hits: blocks found in each tier
        audited: for each audited (token, layer, query head) the share of exact attention that it read
        audit_seconds: what the audit cost
    """

    phase: str = "decode"
    prefill_tokens: int = 0
    decode_tokens: int = 0
    seconds: float = 0.0
    retrieval_seconds: float = 0.0
    blocks_selected: int = 0
    queries: int = 0
    hits: dict[str, int] = field(default_factory=dict)
    audited: list[float] = field(default_factory=list)
    audit_seconds: float = 0.0
