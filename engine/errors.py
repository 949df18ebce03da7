"""What can go wrong in the engine, named for its callers.

EngineError
├── ModelError            the model folder cannot be served (missing, unsupported, damaged)
├── RequestError          the request cannot be run as it stands
│   ├── ConstraintFailed  what an answer must keep to cannot be followed any further; the answer ends there
│   ├── EmptyPrompt
│   ├── InvalidParameter  a parameter is out of its range; `.parameter` names it
│   ├── InvalidSessionFile  it holds no session that can be taken; `.block` if one of its blocks is damaged
│   └── SessionTooLong    the session would pass `max_session_tokens`; `.limit`, `.wanted`
├── SessionNotFound
├── SessionBusy           another request is running in this session
├── QueueFull             too many requests are waiting
├── QuotaExceeded         the tenant's sessions would hold more than they may
├── OutOfRoom             the cache has no free block and nothing can be evicted
└── EngineStopped         the engine is draining or has failed
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of all errors that the engine raises for a caller."""


class ModelError(EngineError):
    """The model cannot be served; the message says what to change."""


class RequestError(EngineError):
    """The request cannot be run; nothing was done."""


class ConstraintFailed(RequestError):
    """The answer cannot go on within its constraint: nothing may come next, or it takes too long to tell what may."""


class EmptyPrompt(RequestError):
    """There is no token to read."""


class InvalidParameter(RequestError):
    """A parameter is outside its range."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter}: {message}")
        self.parameter = parameter


class InvalidSessionFile(RequestError):
    """A file holds no session that this engine can take."""

    def __init__(self, message: str, block: int | None = None) -> None:
        super().__init__(message)
        self.block = block


class SessionTooLong(RequestError):
    """The session would hold more text tokens than it may."""

    def __init__(self, wanted: int, limit: int) -> None:
        super().__init__(f"the session would hold {wanted} tokens, the limit is {limit}")
        self.wanted, self.limit = wanted, limit


class SessionNotFound(EngineError):
    """No session of this tenant has this id."""


class SessionBusy(EngineError):
    """Another request is running in this session."""


class QueueFull(EngineError):
    """As many requests wait as may wait; try again later."""


class QuotaExceeded(EngineError):
    """The tenant's sessions would hold more than they may together."""


class OutOfRoom(EngineError):
    """The cache cannot hold the request beside what is running."""


class EngineStopped(EngineError):
    """The engine takes no requests: it is draining, or it has failed."""
