"""What the engine tells about its model and its sessions."""

from __future__ import annotations

from dataclasses import dataclass

from cache import Session
from engine.attention import RetrievalSettings


@dataclass(frozen=True)
class ModelDescription:
    """What is served, and how."""

    model: str
    vocab_size: int
    eos_token_ids: frozenset[int]
    landmark_token_id: int | None
    retrieval: RetrievalSettings
    block_size: int
    max_session_tokens: int
    dtype: str
    parameters: int


@dataclass(frozen=True)
class SessionInfo:
    """A named session as its owner sees it; times in seconds since 1970.

    Attributes:
        busy: a request runs in it
        pinned: nothing of it is dropped to make room
        ttl: seconds without use after which it is deleted; None never
    """

    id: str
    tokens: int
    created: float
    used: float
    parent: str | None
    busy: bool
    pinned: bool = False
    ttl: float | None = None

    @classmethod
    def of(cls, session: Session, *, busy: bool) -> SessionInfo:
        """What there is to tell of a session."""
        facts = (session.id, len(session.tokens), session.created, session.used, session.parent, busy)
        return cls(*facts, session.pinned, session.ttl)


@dataclass(frozen=True)
class TurnInfo:
    """A request that changed a session: it was given text tokens [start, answer) and generated [answer, end).

    Attributes:
        index: its number in the session, those that are not remembered any more included
    """

    index: int
    start: int
    answer: int
    end: int
