"""What stands before every route: the key, the state of the service, the limits of tenants, the size of bodies.

Owns who may pass. Plain ASGI: a stream passes through untouched, and so does its disconnect.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine import QueueFull
from server.errors import ApiError, BodyTooLarge, Problem, problem_of
from server.limits import Account
from server.service import Service, State
from server.tenants import Caller

log = logging.getLogger("cairn")
LOGGED_BYTES = 10_000
PROBES = ("/health", "/ready", "/version")
METRICS = "/metrics"
GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
DESCRIPTIONS = ("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect")


class Authentication:
    """Every route but the probes needs a key, if there are any; the key says who is asking, and what for."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            return await self._app(scope, receive, send)
        caller = self._service.tenants.caller(dict(scope["headers"]).get(b"authorization", b""))
        problem = _refusal(caller, scope["path"])
        if caller is None or problem is not None:
            return await refuse(self._service, problem or NO_KEY, scope, receive, send)
        scope.setdefault("state", {})["tenant"] = caller.tenant
        return await self._app(scope, receive, send)


NO_KEY = Problem(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
NOTHING = Problem(404, "Not Found")


def _refusal(caller: Caller | None, path: str) -> Problem | None:
    """Why the caller may not ask for `path`."""
    if caller is None:
        return NO_KEY
    if is_admin(path):  # for others these routes do not exist
        return None if caller.role == "admin" else NOTHING
    if path == METRICS:
        return None if caller.sees_metrics else Problem(403, "this key may not read the metrics", code="forbidden")
    if caller.role != "user" and path not in DESCRIPTIONS:
        return Problem(403, f"a key with the role {caller.role} has no tenant; use a tenant's key", code="forbidden")
    return None


def is_admin(path: str) -> bool:
    return path.startswith("/admin/")


async def refuse(service: Service, problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a problem, and count it."""
    service.metrics.count_refusal(problem.status, problem.reason)
    await problem.response()(scope, receive, send)


class Gate:
    """While the model loads or the server drains, only probes are answered; counts what is running."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            return await self._app(scope, receive, send)
        watched = self._service.state is State.DRAINING and is_admin(scope["path"])
        if self._service.state is not State.READY and not watched:
            return await refuse(self._service, self._closed(), scope, receive, send)
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


class RateLimit:
    """Counts a tenant's requests, refuses those beyond its limits, and tells where it stands, as OpenAI does."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or path in (*PROBES, METRICS, *DESCRIPTIONS) or is_admin(path):
            return await self._app(scope, receive, send)
        visit = _Visit(self._service.tenants.accounts.of(scope["state"]["tenant"]), send)
        try:
            visit.begin()
        except ApiError as error:
            return await refuse(self._service, problem_of(error), scope, receive, visit.send)
        try:
            return await self._app(scope, receive, visit.send)
        finally:
            visit.end()


class _Visit:
    """One request of a tenant. It has ended before its last byte is sent, so that the next one may follow at once."""

    def __init__(self, account: Account, send: Send) -> None:
        self._account, self._send, self._inside = account, send, False

    def begin(self) -> None:
        self._account.enter()
        self._inside = True

    def end(self) -> None:
        if self._inside:
            self._inside = False
            self._account.leave()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._tell(MutableHeaders(scope=message))
        elif not message.get("more_body"):
            self.end()
        await self._send(message)

    def _tell(self, headers: MutableHeaders) -> None:
        for kind in ("requests", "tokens"):
            if standing := self._account.standing(f"{kind}_per_minute"):
                headers[f"x-ratelimit-limit-{kind}"] = str(standing.limit)
                headers[f"x-ratelimit-remaining-{kind}"] = str(standing.remaining)
                headers[f"x-ratelimit-reset-{kind}"] = f"{standing.seconds_to_full:.3f}s"


class Queue:
    """Refuses what would have to wait where no more may, before its body is read: many may come at once.

    It is looked at again when a request is ready to run, for others came meanwhile.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generates = scope["type"] == "http" and scope["path"] in GENERATING and scope["method"] == "POST"
        if generates and self._service.model.engine.full:
            return await refuse(self._service, FULL, scope, receive, send)
        return await self._app(scope, receive, send)


FULL = problem_of(QueueFull("as many requests are waiting as may; try again later"))


class BodyLimit:
    """Refuses a body over the limit: by its announced length at once, else while it is read.

    Args:
        larger: bytes for paths of which more than `max_body_bytes` is expected; no texts, and never logged
    """

    def __init__(self, app: ASGIApp, service: Service, larger: Mapping[str, int]) -> None:
        self._app, self._service, self._larger = app, service, larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limit = self._larger.get(scope["path"], self._service.settings.max_body_bytes)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            return await refuse(self._service, problem_of(BodyTooLarge(limit)), scope, receive, send)
        if self._service.settings.log_prompts and scope["path"] not in self._larger:
            receive = _logged(scope, receive)
        return await self._app(scope, _counting(receive, limit), send)


def _counting(receive: Receive, limit: int) -> Receive:
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit:
            raise BodyTooLarge(limit)
        return message

    return counted


class Failures:
    """Answers what nobody expected. Starlette would answer it too, and then break the connection without a word."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            await refuse(self._service, problem_of(error), scope, receive, send)


def _logged(scope: Scope, receive: Receive) -> Receive:
    """`receive` that logs the beginning of the body when it is complete."""
    beginning = bytearray()

    async def logged() -> Message:
        message = await receive()
        if message["type"] == "http.request" and len(beginning) < LOGGED_BYTES:
            beginning.extend(message.get("body", b"")[: LOGGED_BYTES - len(beginning)])
            if beginning and not message.get("more_body"):
                log.info("%s %s: %s", scope["method"], scope["path"], beginning.decode("utf-8", "replace"))
        return message

    return logged
