"""Connections: how many there may be, how slowly a client may speak, and an error body for what is no HTTP.

Owns what uvicorn's h11 protocol leaves open: it waits for ever for a request that begins and does not end. A client
that sends has `receive_seconds`, and more time for each byte that it sends; one that waits for an answer may wait.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from server.errors import Problem

SLOWEST_BYTES_PER_SECOND = 1024
WAITING = (h11.IDLE, h11.SEND_BODY)  # states of a client who has not sent all of its request


class Protocol(H11Protocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        max_connections: int,
        receive_seconds: float,
        count: Callable[[int, str], None],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._count = count
        self._most, self._patience = max_connections, receive_seconds
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            self._refuse(Problem(503, "there are too many connections", code="too_many_connections"))
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        now = self.loop.time()
        self._deadline = min(self._deadline + len(data) / SLOWEST_BYTES_PER_SECOND, now + self._patience)
        super().data_received(data)
        if self.conn.their_state not in WAITING or self.transport.is_closing():
            self._stop_waiting()
        elif self._timer is None:
            self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._timer is None and self.conn.trailing_data[0] and self.conn.their_state in WAITING:
            self._wait()  # the beginning of the next request is there already

    def send_400_response(self, msg: str) -> None:
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(Problem(status, msg, code="invalid_http"))

    def _wait(self) -> None:
        self._deadline = self.loop.time() + self._patience
        self._timer = self.loop.call_later(self._patience, self._look)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Go on waiting if the client has sent enough meanwhile."""
        left = self._deadline - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(left, self._look)
        else:
            self._refuse(Problem(408, "the request did not come in time", code="request_too_slow"))

    def _refuse(self, problem: Problem) -> None:
        """Answer, if there is no answer yet, and close."""
        self._stop_waiting()
        self._count(problem.status, problem.reason)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = problem.response()
            headers = [*response.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=problem.status, headers=headers),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:  # whoever handles it learns that the client has left
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
