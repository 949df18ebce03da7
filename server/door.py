"""What is looked at before anybody asks who is asking: the size of headers, the host, the page behind a browser.

A server without keys trusts whoever reaches it, and a browser on this machine reaches it for every page that is open in
it. So where no keys are needed, a page may neither send requests from elsewhere (cross-site requests need no answer to
do harm) nor give this address a name of its own (DNS rebinding). Owns these rules. Plain ASGI.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import Problem
from server.middleware import refuse
from server.service import Service
from server.settings import Settings

MAX_URL_BYTES = 8192
MAX_HEADERS = 100
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OWN_NAMES = (*LOOPBACK, "host.docker.internal")  # the last is what containers call this machine; no page can have it
SAFE = ("GET", "HEAD", "OPTIONS")
ANY = "*"


class Door:
    """Refuses what no route should see, and marks answers as nobody else's business."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        settings = service.settings
        self._header_bytes, self._origins = settings.max_header_bytes, settings.allowed_origins
        self._hosts, self._open = allowed_hosts(settings), settings.without_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        problem = self._problem(scope, Headers(scope=scope))
        if problem is not None:
            return await refuse(self._service, problem, scope, receive, _marked(send, connection="close"))
        return await self._app(scope, receive, _marked(send))

    def _problem(self, scope: Scope, headers: Headers) -> Problem | None:
        if "content-length" in headers and "transfer-encoding" in headers:  # a proxy may take the other one (smuggling)
            return Problem(400, "the body has two lengths", code="invalid_http")
        return self._too_large(scope) or self._wrong_host(headers) or self._from_elsewhere(scope["method"], headers)

    def _too_large(self, scope: Scope) -> Problem | None:
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_URL_BYTES:
            return Problem(414, f"the URL is longer than {MAX_URL_BYTES} bytes", code="url_too_long")
        fields = scope["headers"]
        if len(fields) > MAX_HEADERS:
            return Problem(431, f"there are more than {MAX_HEADERS} headers", code="headers_too_large")
        if sum(len(name) + len(value) for name, value in fields) > self._header_bytes:
            return Problem(431, f"the headers are longer than {self._header_bytes} bytes", code="headers_too_large")
        return None

    def _wrong_host(self, headers: Mapping[str, str]) -> Problem | None:
        host = headers.get("host")
        if host is None or ANY in self._hosts or _host_name(host) in self._hosts or _is_address(host):
            return None
        return Problem(
            403, f"this server is not called {host[:200]!r}; --allowed-hosts tells it its names", code="wrong_host"
        )

    def _from_elsewhere(self, method: str, headers: Mapping[str, str]) -> Problem | None:
        """A browser tells for which page it asks, in headers that no page can change."""
        if not self._open or method in SAFE or ANY in self._origins:
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin in self._origins:
            return None
        same = origin is None or urlsplit(origin).netloc == headers.get("host")
        if same and site in ("none", "same-origin"):
            return None
        return Problem(
            403,
            "web pages from elsewhere may not use this server; --allowed-origins names those that may",
            code="wrong_origin",
        )


def allowed_hosts(settings: Settings) -> tuple[str, ...]:
    """By which names the server may be called; an address is always fine, since nobody can make it up."""
    if settings.allowed_hosts:
        return tuple(host.lower() for host in settings.allowed_hosts)
    return OWN_NAMES if settings.without_keys and settings.host in LOOPBACK else (ANY,)


def _host_name(host: str) -> str:
    return (urlsplit(f"//{host}").hostname or "").rstrip(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(_host_name(host))
    except ValueError:
        return False
    return True


def _marked(send: Send, **more: str) -> Send:
    """Answers hold texts: nothing on the way may keep them, and no browser may take them for a page or a script."""

    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["x-content-type-options"] = "nosniff"
            headers.setdefault("cache-control", "no-store")
            headers.update(more)
        await send(message)

    return marked
