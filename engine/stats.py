"""What the engine tells about itself: a snapshot on request, and a report after each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from cache import BlockStore

Key = TypeVar("Key")


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
        evictions: sessions that had to go, or whose keys and values had to, by reason, since the start
        damaged: stored blocks that were not what they should be, since the start
        unwritten: blocks that are still to be written to the disk
        store_failed: what is told is kept in memory alone, because the disk fails
    """

    running: int
    waiting: int
    sessions: dict[str, int]
    tiers: dict[str, TierStats]
    evictions: dict[str, int] = field(default_factory=dict)
    damaged: int = 0
    unwritten: int = 0
    store_failed: bool = False


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
        hits: heads of blocks that were fetched, by the tier that had them
        audited: for each audited (token, layer, query head) the share of exact attention that it read
        audit_seconds: what the audit cost
        moved: bytes of keys and values that were brought up, by (from, to)
        foreseen: heads of blocks that were brought to the device before they were asked for
        guessed: how many of these were asked for then
        restores: seconds that it took to bring each session back that was needed
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
    moved: dict[tuple[str, str], int] = field(default_factory=dict)
    foreseen: int = 0
    guessed: int = 0
    restores: list[float] = field(default_factory=list)

    def count(self, fetched: int, store: BlockStore) -> None:
        """So many heads of blocks were fetched; some of them came up from below for it."""
        traffic, left, layout = store.tier.traffic(), fetched, store.layout
        self.blocks_selected += fetched
        for name, came in reversed(traffic.waited.items()):
            add(self.hits, name, min(came, left))
            left -= min(came, left)
        add(self.hits, store.tier.name, left)
        for way, came in traffic.moved.items():
            add(self.moved, way, came * layout.block_bytes // (layout.layers * layout.kv_heads))
        self.foreseen += traffic.foreseen
        self.guessed += traffic.guessed


def add(counts: dict[Key, int], name: Key, count: int) -> None:
    counts[name] = counts.get(name, 0) + count
