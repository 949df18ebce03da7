"""What can go wrong, as one tree.

CairnError
├── NotReachable             nobody answers there, or the connection broke
│   └── TimedOut             nothing came for as long as the timeout allows
├── NotReady                 the server was not ready within the time that `wait_until_ready` was given
├── BadReply                 the answer is no answer of a Cairn server: a stream that ends early, no JSON
└── ApiError                 the server answered with an error: `status`, `message`, `type`, `param`, `code`, `body`
    ├── BadRequest           400, 422 and what has no name below: `param` names the field
    │   └── KeyReused        422: this idempotency key was used for another request
    ├── Unauthorized         401: no key, or a wrong one
    ├── Forbidden            403: the key may not do this
    ├── NotFound             404: no such session, model or turn; also those of another key
    ├── Busy                 409: another request is running in the session
    ├── Changed              412: the session is not any more as `if_match` says
    ├── TooLarge             413: over a limit; `limit` and `wanted` tell by how much, where the server does
    ├── RateLimited          429: too much at once; `retry_after` seconds
    └── ServerFailed         5xx
        └── Unavailable      503: the model loads, or the server stops; `retry_after` seconds
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class CairnError(Exception):
    """Whatever this client raises by itself."""


class NotReachable(CairnError):
    """Nobody answers there, or the connection broke."""


class TimedOut(NotReachable):
    """Nothing came for as long as the timeout allows."""


class NotReady(CairnError):
    """The server was not ready in time."""


class BadReply(CairnError):
    """The answer is no answer of a Cairn server."""


class ApiError(CairnError):
    """The server answered with an error, before or within a stream.

    Attributes:
        status: of HTTP; of an error within a stream the one that its type would have
        message, type, param, code: of OpenAI's error body; `param` names the field that is wrong
        body: the whole body, `{"error": {…}}`
        retry_after: seconds to wait, where the server tells them
    """

    def __init__(self, status: int, error: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.message = str(error.get("message") or f"HTTP {status}")
        super().__init__(self.message)
        self.status, self.retry_after = status, retry_after
        self.type, self.param, self.code = (_text(error.get(name)) for name in ("type", "param", "code"))
        self.body: dict[str, Any] = {"error": dict(error)}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, self.body["error"], self.retry_after)


class BadRequest(ApiError):
    """The request can not be served as it is; `param` names the field."""


class KeyReused(BadRequest):
    """This idempotency key was used for another request."""


class Unauthorized(ApiError):
    """No key, or a wrong one."""


class Forbidden(ApiError):
    """The key may not do this."""


class NotFound(ApiError):
    """No such session, model or turn; also those of another key."""


class Busy(ApiError):
    """Another request is running in the session: wait, or ask in a fork."""


class Changed(ApiError):
    """The session is not any more as `if_match` says."""


class TooLarge(ApiError):
    """Over a limit."""

    @property
    def limit(self) -> int | None:
        """The limit, in tokens of the session or bytes of the body, as `code` tells."""
        return self._number("limit")

    @property
    def wanted(self) -> int | None:
        """What the request would have needed."""
        return self._number("wanted")

    def _number(self, name: str) -> int | None:
        value = self.body["error"].get(name)
        return int(value) if isinstance(value, int | float) else None


class RateLimited(ApiError):
    """Too much at once."""


class ServerFailed(ApiError):
    """A failure of the server."""


class Unavailable(ServerFailed):
    """The model loads, or the server stops."""


BY_STATUS: dict[int, type[ApiError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Busy,
    412: Changed,
    413: TooLarge,
    429: RateLimited,
    503: Unavailable,
}
BY_TYPE = {"authentication_error": 401, "not_found_error": 404, "conflict_error": 409, "rate_limit_error": 429}


def api_error(status: int, body: object, retry_after: float | None = None) -> ApiError:
    """The error of the tree for an answer with `status` and `body`, which may be anything."""
    error = error_of(body)
    if status == 422 and error.get("code") == "idempotency_key_reused":
        return KeyReused(status, error, retry_after)
    kind = BY_STATUS.get(status, ServerFailed if status >= 500 else BadRequest)
    return kind(status, error, retry_after)


def streamed_error(body: object) -> ApiError:
    """The error that a stream tells: it has no status of its own."""
    error = error_of(body)
    known = str(error.get("type"))
    return api_error(BY_TYPE.get(known, 400 if known == "invalid_request_error" else 500), body)


def error_of(body: object) -> Mapping[str, Any]:
    """OpenAI's error object in `body`, or one that holds what is there."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(error, Mapping):
        return error
    return {"message": str(error)[:500] if error else None}


def parsed(data: bytes) -> object:
    """The JSON of a body, or its text."""
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")


def _text(value: object) -> str | None:
    return None if value is None else str(value)
