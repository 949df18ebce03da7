"""The process that serves: uvicorn with a drain. SIGTERM refuses new requests, waits for running ones, then stops.

Owns the life of the process once the settings are known. Knows no route.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import sys
import time
from types import FrameType

import uvicorn

from server.app import create_app
from server.door import LOOPBACK
from server.protocol import Protocol
from server.service import Service, State
from server.settings import Settings

log = logging.getLogger("cairn")
KEEP_CONNECTION_SECONDS = 65  # longer than the 60 s after which usual proxies drop an idle connection


class DrainingServer(uvicorn.Server):
    """Uvicorn closes its door at SIGTERM; this one goes on answering (503, or what runs) while it drains."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM drains; Ctrl-C, or a second signal, ends what runs at once."""
        patience = 0.0 if sig == signal.SIGINT or self._deadline else self._service.settings.drain_seconds
        self._service.drain()
        self._deadline = time.monotonic() + patience

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; asked ten times a second."""
        if self._service.state is State.FAILED:
            return True
        if self._deadline is not None and (self._service.running == 0 or time.monotonic() >= self._deadline):
            await asyncio.to_thread(self._service.stop)  # answers end in an error, not in a broken connection
            return True
        return await super().on_tick(counter)


def serve(settings: Settings) -> int:
    """Serve until a signal; the exit code."""
    service = Service(settings)
    server = DrainingServer(server_config(settings, service), service)
    print(
        f"Cairn on http://{settings.host}:{settings.port}, loading {settings.model_name}", file=sys.stderr, flush=True
    )
    if settings.host not in LOOPBACK and settings.without_keys:
        log.warning("no API keys are set: whoever reaches %s can use this server", settings.host)
    # By default it would end the process; other servers read their configuration again.
    signal.signal(signal.SIGHUP, lambda *_: service.tenants.reload_or_log())
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if service.failure is not None:
        print(f"cairn: cannot serve {settings.model}: {service.failure}", file=sys.stderr)
        return 2
    return 0 if server.started else 1


def server_config(settings: Settings, service: Service) -> uvicorn.Config:
    """Uvicorn's configuration."""
    return uvicorn.Config(
        create_app(settings, service),
        host=settings.host,
        port=settings.port,
        http=functools.partial(  # type: ignore[arg-type]  # any factory of protocols will do
            Protocol,
            max_connections=settings.max_connections,
            receive_seconds=settings.receive_seconds,
            count=service.metrics.count_refusal,
        ),
        ws="none",
        h11_max_incomplete_event_size=settings.max_header_bytes,
        log_level="warning" if settings.log_level == "info" and not settings.access_log else settings.log_level,
        access_log=settings.access_log,
        log_config=None,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=KEEP_CONNECTION_SECONDS,
        timeout_graceful_shutdown=5,
    )
