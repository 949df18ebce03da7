"""What both clients share about sending: addresses, timeouts, failures, and when to try again. Sends nothing itself."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import httpx

from cairn_client.errors import ApiError, CairnError, NotFound, NotReachable, RateLimited, TimedOut, api_error, parsed
from cairn_client.files import size
from cairn_client.operations import Reply, Request
from cairn_client.version import VERSION

DEFAULT_URL = "http://127.0.0.1:8000"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Reading a long prompt without a stream is silent until the answer comes; a stream sends comments in between.
TIMEOUT = httpx.Timeout(600.0, connect=10.0, write=60.0, pool=60.0)
NOT_BEGUN = ("loading", "draining")  # codes of a 503 that comes before anything was done


@dataclass(frozen=True)
class Retries:
    """How often and how patiently a request is sent again.

    Attributes:
        attempts: further ones after the first; 0 never tries again
        first, longest: seconds before the second attempt, doubled from one to the next, and the most that is waited,
            of which a random half is left out so that many clients do not come back together
        patience: the most seconds of a server's `Retry-After` that are waited for; more is an error at once
    """

    attempts: int = 3
    first: float = 0.5
    longest: float = 8.0
    patience: float = 60.0

    def wait(self, attempt: int, told: float | None) -> float:
        """Seconds before the attempt after `attempt` ones; `told` by the server or not."""
        chosen = min(self.longest, self.first * 2**attempt) * random.uniform(0.5, 1.0)
        return chosen if told is None else max(told, chosen)


class Attempts:
    """The attempts of one request."""

    def __init__(self, retries: Retries, request: Request) -> None:
        self._retries, self._request = retries, request
        self._made = 0

    def after(self, error: CairnError) -> float:
        """Seconds until the next attempt; raises `error` where there may be none."""
        told = error.retry_after if isinstance(error, ApiError) else None
        if self._made >= self._retries.attempts or not self._may(error) or (told or 0) > self._retries.patience:
            raise error
        self._made += 1
        return self._retries.wait(self._made - 1, told)

    def settles(self, error: CairnError) -> bool:
        """Whether `error` says that an earlier attempt did its work after all."""
        return self._made > 0 and self._request.absent_is_done and isinstance(error, NotFound)

    def _may(self, error: CairnError) -> bool:
        if isinstance(error, RateLimited) or (isinstance(error, ApiError) and error.code in NOT_BEGUN):
            return True
        if isinstance(error, NotConnected):
            return True
        passing = isinstance(error, NotReachable) or (isinstance(error, ApiError) and error.status == 503)
        return passing and self._request.repeatable


class NotConnected(NotReachable):
    """Nobody answers there: the request was certainly not received."""


@contextlib.contextmanager
def failures(url: str) -> Iterator[None]:
    """httpx's errors as this package's."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise NotConnected(f"no server can be reached at {url}: {_told(error)}") from error
    except httpx.TimeoutException as error:
        raise TimedOut(f"the server at {url} was silent for too long ({type(error).__name__})") from error
    except httpx.HTTPError as error:
        raise NotReachable(f"the connection to {url} broke: {_told(error)}") from error
    except httpx.InvalidURL as error:
        raise NotReachable(f"{url} is no address: {_told(error)}") from error


def reply_of(request: Request, response: httpx.Response) -> Reply:
    """The answer, read before; ApiError if it is an error."""
    check(request, response, response.content)
    return Reply(response.status_code, response.headers, response.content)


def check(request: Request, response: httpx.Response, content: bytes) -> None:
    """ApiError if the answer with this `content` is an error."""
    if response.is_error and response.status_code not in request.accepts:
        raise api_error(response.status_code, parsed(content), _seconds(response.headers.get("retry-after")))


def plain(request: Request) -> dict[str, Any]:
    """The arguments of httpx's `build_request` for what has no upload."""
    return {
        "method": request.method,
        "url": request.path,
        "params": request.query or None,
        "headers": dict(request.headers),
        "json": request.body,
        "timeout": httpx.USE_CLIENT_DEFAULT if request.timeout is None else request.timeout,
    }


def announced(request: Request, file: BinaryIO) -> dict[str, str]:
    """The headers of an upload that is the body itself, its length among them where it is known."""
    length = size(file)
    return dict(request.headers) | ({} if length is None else {"Content-Length": str(length)})


def form(request: Request, file: object) -> dict[str, Any]:
    """Its further arguments for an upload in a form."""
    assert request.upload is not None
    part = (request.upload.name, file, *([request.upload.media_type] if request.upload.media_type else []))
    return {"json": None, "data": dict(request.form or {}), "files": {"file": part}}


def address(url: str | None) -> str:
    """Where the server is: `url`, else CAIRN_URL, else this machine; without a scheme, by http."""
    found = (url or os.environ.get("CAIRN_URL") or DEFAULT_URL).rstrip("/")
    found = found if "://" in found else f"http://{found}"
    return found.removesuffix("/v1")  # what OpenAI's client takes


def settings(url: str, api_key: str | None, timeout: float | httpx.Timeout | None) -> dict[str, Any]:
    """The arguments of httpx's clients; for a server on this machine, proxies of the environment are left aside."""
    key = api_key or os.environ.get("CAIRN_API_KEY")
    headers = {"User-Agent": f"cairn-client/{VERSION}"} | ({"Authorization": f"Bearer {key}"} if key else {})
    return {
        "base_url": url,
        "headers": headers,
        "timeout": TIMEOUT if timeout is None else timeout,
        "trust_env": not _local(url),
    }


def _local(url: str) -> bool:
    try:
        return httpx.URL(url).host in LOOPBACK
    except httpx.InvalidURL:
        return False


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__


def _seconds(value: str | None) -> float | None:
    """A Retry-After in seconds; the date that HTTP also allows is not one that Cairn sends."""
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        return None
