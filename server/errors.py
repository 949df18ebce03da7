"""Which error is which status: one table from exceptions to OpenAI's error body.

Owns the shape of error answers. Knows no route.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from engine import (
    ConstraintFailed,
    EmptyPrompt,
    EngineError,
    EngineStopped,
    InvalidParameter,
    InvalidSessionFile,
    ModelError,
    OutOfRoom,
    QueueFull,
    QuotaExceeded,
    SessionBusy,
    SessionNotFound,
    SessionTooLong,
    StoreError,
)
from server.chat import ConversationError
from server.settings import sized

log = logging.getLogger("cairn")
NAMED = re.compile(r"(\w+): ")
REFUSED = ("extra_forbidden", "none_required")

UNREADABLE: tuple[tuple[type[Exception], str], ...] = (
    (RecursionError, "it is nested too deeply"),
    (UnicodeDecodeError, "it is not in UTF-8"),
    (ValueError, "a number has too many digits"),
)


class ApiError(Exception):
    """An error of the server's own, ready to be sent."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        *,
        extra: Mapping[str, Any] | None = None,
        retry_after: float = 1.0,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.extra, self.retry_after = extra or {}, retry_after


class BodyTooLarge(HTTPException):
    """Raised while a body is read; of all exceptions FastAPI lets only its own pass there."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the body is larger than {sized(limit)}")
        self.limit = limit


@dataclass(frozen=True)
class Problem:
    """An error as clients see it."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    retry_after: float = 1.0
    headers: Mapping[str, str] = field(default_factory=dict)
    """More of them, as 405's `Allow`."""

    @property
    def type(self) -> str:
        return TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def reason(self) -> str:
        """What the refusal is counted as: the code, or the limit that was passed."""
        return str(self.extra.get("limited") or self.code or self.status)

    def body(self) -> dict[str, Any]:
        """OpenAI's error body."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**error, **self.extra}}

    def response(self) -> JSONResponse:
        headers = dict(self.headers)
        if self.status in (429, 503):
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 504:
            headers["x-should-retry"] = "false"  # OpenAI's clients would send it again, to take as long again
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}

TABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (ConstraintFailed, 400, "constraint_failed"),
    (EmptyPrompt, 400, "empty_prompt"),
    (InvalidParameter, 400, "invalid_parameter"),
    (InvalidSessionFile, 400, "invalid_session_file"),
    (ConversationError, 400, "invalid_messages"),
    (SessionNotFound, 404, "session_not_found"),
    (SessionBusy, 409, "session_busy"),
    (SessionTooLong, 413, "session_too_long"),
    (QuotaExceeded, 429, "quota_exceeded"),
    (QueueFull, 429, "queue_full"),
    (OutOfRoom, 429, "out_of_room"),
    (EngineStopped, 503, "unavailable"),
    (ModelError, 503, "model_error"),
    (StoreError, 503, "store_failed"),
)


def problem_of(error: Exception) -> Problem:
    """How `error` is told to the client; what is in no table is a failure of ours and keeps its details."""
    if isinstance(error, ApiError):
        return Problem(error.status, str(error), error.param, error.code, error.extra, error.retry_after)
    if isinstance(error, RequestValidationError):
        return _validation_problem(error)
    if isinstance(error, BodyTooLarge):
        return Problem(413, str(error.detail), code="body_too_large", extra={"limit": error.limit})
    if isinstance(error, HTTPException):
        headers = error.headers or {}
        return _unreadable(error) or Problem(error.status_code, str(error.detail), headers=headers)
    for kind, status, code in TABLE:
        if isinstance(error, kind):
            return Problem(status, str(error) or code, getattr(error, "parameter", None), code, _details(error))
    log.error("request failed", exc_info=error)
    shown = str(error) if isinstance(error, EngineError) else "the server failed to handle this request"
    return Problem(500, shown, code="internal_error")


def install(app: FastAPI) -> None:
    """Answer every error in the same shape."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        problem = _not_json(request, error) or problem_of(error)
        if problem.status == 405:  # Starlette tells the methods of the first route with this path alone
            problem = replace(problem, headers={"Allow": ", ".join(_allowed(request))})
        request.app.state.service.metrics.count_refusal(problem.status, problem.reason)
        return problem.response()

    for kind in (
        ApiError,
        ConversationError,
        EngineError,
        StoreError,
        RequestValidationError,
        HTTPException,
        Exception,
    ):
        app.add_exception_handler(kind, answer)


def _allowed(request: Request) -> list[str]:
    """The methods that the path takes, whichever route answers them."""
    routes = request.app.router.routes
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    return [method for method, scope in scopes.items() if any(each.matches(scope)[0] is Match.FULL for each in routes)]


def _not_json(request: Request, error: Exception) -> Problem | None:
    """A body that was not taken for JSON, because its header says something else, or nothing."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if isinstance(error, RequestValidationError) and error.errors()[0]["loc"] == ("body",) and not _is_json(kind):
        return Problem(415, "the body must be JSON: Content-Type: application/json", code="unsupported_media_type")
    return None


def _is_json(kind: str) -> bool:
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _unreadable(error: HTTPException) -> Problem | None:
    """A body that the JSON reader gave up on for another reason than its grammar; FastAPI does not tell which."""
    reason = next((told for kind, told in UNREADABLE if isinstance(error.__cause__, kind)), None)
    if error.status_code != 400 or reason is None:
        return None
    return Problem(400, f"the body is not valid JSON: {reason}", code="invalid_json")


def _details(error: Exception) -> dict[str, Any]:
    if isinstance(error, InvalidSessionFile) and error.block is not None:
        return {"block": error.block}
    return {"limit": error.limit, "wanted": error.wanted} if isinstance(error, SessionTooLong) else {}


def _validation_problem(error: RequestValidationError) -> Problem:
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None  # the first says where: body, query
    if first["type"] == "json_invalid":
        return Problem(
            400, f"the body is not valid JSON: {first.get('ctx', {}).get('error', '')}", None, "invalid_json"
        )
    only_empty = first["type"] == "too_long" and first["ctx"]["max_length"] == 0  # a list that may be given, empty
    if first["type"] in REFUSED or only_empty:
        return Problem(400, f"{param}: this server does not support this parameter", param, "unsupported_parameter")
    message = str(first["msg"]).removeprefix("Value error, ")
    if param is None and (named := NAMED.match(message)):  # a rule over several fields names the one to change
        return Problem(400, message, named[1], "invalid_value")
    return Problem(400, f"{param or 'the body'}: {message}", param, "invalid_value")
