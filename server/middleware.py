"""What stands before every route: the key, the state of the service, the size of bodies.

Owns who may pass. Plain ASGI: a stream passes through untouched, and so does its disconnect.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import Problem
from server.service import Service, State

PROBES = ("/health", "/ready", "/version")


class Authentication:
    """Every route but the probes needs a key, if any is set; the tenant is the key's hash."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._hashes = [_hash(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES or not self._hashes:
            return await self._app(scope, receive, send)
        tenant = self._tenant(scope)
        if tenant is None:
            problem = Problem(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
            return await problem.response()(scope, receive, send)
        scope.setdefault("state", {})["tenant"] = tenant
        return await self._app(scope, receive, send)

    def _tenant(self, scope: Scope) -> str | None:
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        hashed = _hash(key.strip())
        # Every key is compared, so that the time does not tell which one was close.
        known = [hmac.compare_digest(hashed, each) for each in self._hashes]
        return hashed if scheme.lower() == b"bearer" and any(known) else None


class Gate:
    """While the model loads or the server drains, only probes are answered; counts what is running."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            return await self._app(scope, receive, send)
        if self._service.state is not State.READY:
            return await self._closed().response()(scope, receive, send)
        self._service.running += 1
        try:
            return await self._app(scope, receive, send)
        finally:
            self._service.running -= 1

    def _closed(self) -> Problem:
        state = self._service.state
        reasons = {
            State.LOADING: "the model is loading",
            State.DRAINING: "the server is shutting down",
            State.FAILED: f"the model could not be loaded: {self._service.failure}",
        }
        return Problem(503, reasons.get(state, state.value), code=state.value)


class BodyLimit:
    """Refuses a body over the limit: by its announced length at once, else while it is read.

    Args:
        limit: bytes
        larger: bytes for paths of which more is expected
    """

    def __init__(self, app: ASGIApp, limit: int, larger: Mapping[str, int] | None = None) -> None:
        self._app, self._limit, self._larger = app, limit, larger or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limit = self._larger.get(scope["path"], self._limit)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            problem = Problem(413, _too_large(limit), code="body_too_large", extra={"limit": limit})
            return await problem.response()(scope, receive, send)
        return await self._app(scope, _counting(receive, limit), send)


def _counting(receive: Receive, limit: int) -> Receive:
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return counted


def _too_large(limit: int) -> str:
    return f"the body is larger than {limit} bytes"


def _hash(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()
