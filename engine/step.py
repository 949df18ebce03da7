"""One forward pass: which positions of which sessions it computes. Plain values; knows no tensor and no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from cache import CacheLayout, Session
from engine.audit import Audit, samples
from engine.stats import StepReport
from engine.tally import Tally


@dataclass(frozen=True)
class Span:
    """Consecutive new positions of one session.

    Attributes:
        session: whose blocks are written and read
        start, end: text tokens [start, end) of the session
        token_ids: one for each position, landmarks included
        blocks_per_head: far blocks that each KV head fetches per position; None fetches all
        audit_rate: share of the positions at which one layer and head is compared with exact attention
        audit: where to put what the audit finds, beside the step's report
        top_p: stop fetching when this share of the attention is covered; None fetches `blocks_per_head` always
        tally: where to count what the positions read; None counts nothing
    """

    session: Session
    start: int
    end: int
    token_ids: list[int]
    blocks_per_head: int | None
    tally: Tally | None = None
    top_p: float | None = None
    audit_rate: float = 0.0
    audit: Audit | None = None

    @property
    def first(self) -> int:
        """Position of the first token."""
        return self.session.layout.positions(self.start)

    @cached_property
    def samples(self) -> dict[int, int]:
        """Positions that are audited, each with the number that draws its layer and head."""
        return samples(self.first, self.token_ids, self.audit_rate)


@dataclass
class Step:
    """Spans that go through the model together, and what is measured on the way.

    Those of one session follow each other; one of a single position is its session's only one.

    Attributes:
        shared: what the attention that goes through it worked out for one layer and needs for others
    """

    spans: list[Span] = field(default_factory=list)
    report: StepReport = field(default_factory=StepReport)
    shared: dict[object, object] = field(default_factory=dict, repr=False)

    @property
    def positions(self) -> int:
        """Length of the flattened batch."""
        return sum(len(span.token_ids) for span in self.spans)


def with_landmarks(tokens: list[int], start: int, landmark: int | None, layout: CacheLayout) -> list[int]:
    """Token ids of the positions that text tokens `start`, `start + 1`, … take: a landmark closes each full block."""
    if landmark is None:
        return tokens
    positions: list[int] = []
    for index, token in enumerate(tokens, start + 1):
        positions.append(token)
        if index % layout.text_per_block == 0:
            positions.append(landmark)
    return positions
