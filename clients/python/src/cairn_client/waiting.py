"""When to stop waiting for a server. Asks nobody: whoever asks tells the answers."""

from __future__ import annotations

import time

from cairn_client.errors import NotReady
from cairn_client.types import Health

POLL_SECONDS = 0.2


class Waiting:
    """A wait of at most `timeout` seconds for the server at `url`."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url, self._timeout = url, timeout
        self._deadline = time.monotonic() + timeout
        self._status = "does not answer"

    def over(self, health: Health) -> bool:
        """Whether the server is ready; NotReady if it never will be."""
        self._status = f"is {health.status}"
        if health.status == "failed":
            raise NotReady(f"the server at {self._url} could not load its model")
        return health.ok

    def check(self) -> None:
        """NotReady if it took too long."""
        if time.monotonic() >= self._deadline:
            raise NotReady(f"the server at {self._url} {self._status} after {self._timeout:g} s")
