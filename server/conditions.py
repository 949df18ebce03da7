"""Conditional requests: a session's ETag, `If-None-Match` for who reads it, `If-Match` for who changes it.

Owns what the tag is made of and how the headers are compared (RFC 9110, 13.1). Knows no route.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from fastapi.responses import JSONResponse, Response

from engine import Engine, SessionInfo
from server.errors import ApiError

Result = TypeVar("Result")
TAG = re.compile(r'(W/)?("[^"]*")')


def etag(info: SessionInfo) -> str:
    """Changes when the session's tokens or settings do, and while a request runs in it; the same after a restart."""
    state = (info.id, info.tokens, info.used, info.busy, info.pinned, info.ttl)
    return f'"{hashlib.blake2b(repr(state).encode(), digest_size=12).hexdigest()}"'


def unless_known(request: Request, info: SessionInfo, response: JSONResponse) -> Response:
    """`response`, or 304 without a body if the client has this state of the session already."""
    response.headers["ETag"] = etag(info)
    known = request.headers.get("if-none-match", "")
    if known.strip() != "*" and etag(info) not in (tag for _, tag in TAG.findall(known)):
        return response
    kept = {name: text for name, text in response.headers.items() if name in ("etag", "x-session-id")}
    return Response(status_code=304, headers=kept)


@dataclass(frozen=True)
class Precondition:
    """What a request demands of the session that it is to change: the tags of `If-Match`; None demands nothing."""

    wanted: str | None

    @contextmanager
    def holds(self, engine: Engine, session_id: str, tenant: str) -> Iterator[None]:
        """Nobody else changes the session inside; ApiError 412 if somebody has."""
        if self.wanted is None:
            yield
            return
        with engine.holding(session_id, tenant) as info:
            if not self._met(info):
                message = "the session has changed since this ETag was given; get it again, and decide anew"
                raise ApiError(412, message, "If-Match", "precondition_failed")
            yield

    def before(self, method: Callable[[Engine, str, str], Result]) -> Callable[[Engine, str, str], Result]:
        """A method of the engine that is called only if the precondition holds."""

        def guarded(engine: Engine, session_id: str, tenant: str) -> Result:
            with self.holds(engine, session_id, tenant):
                return method(engine, session_id, tenant)

        return guarded

    def _met(self, info: SessionInfo) -> bool:
        assert self.wanted is not None
        strong = [tag for weak, tag in TAG.findall(self.wanted) if not weak]
        return self.wanted.strip() == "*" or etag(info) in strong


def _precondition_of(request: Request) -> Precondition:
    return Precondition(request.headers.get("if-match"))


IfMatch = Annotated[Precondition, Depends(_precondition_of)]
