"""The server as a child process: started on a free loopback port, awaited, and always ended. Knows no requests."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from clients.demo.errors import ServerError

READY_WITHIN = 180.0  # seconds, enough to load torch and a model from a cold disk
END_WITHIN = 10.0


class ServerProcess:
    """A running server; `log` is a file that holds all that it writes."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self._process = process
        self._log = log
        self.url = url
        self.pid = process.pid

    def wait_until(self, ready: Callable[[], bool], within: float = READY_WITHIN) -> None:
        """Return once `ready()`.

        Raises:
            ServerError: the process ended, or was not ready in time
        """
        deadline = time.monotonic() + within
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise ServerError(f"the server was not ready after {within:.0f} s", self.tail())
            time.sleep(0.1)

    def check(self) -> None:
        """Raise ServerError where the process has ended."""
        if (code := self._process.poll()) is not None:
            raise ServerError(f"the server ended by itself with exit code {code}", self.tail())

    def tail(self, lines: int = 20) -> str:
        """The last lines of the log."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def memory(self) -> int | None:
        """Resident bytes of the process, or None where the system does not tell them as Linux does."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        except OSError:
            return None
        found = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(found[0]) * 1024 if found else None

    def ask_to_end(self) -> None:
        """Tell the process to end, and go on."""
        self._process.terminate()

    def end(self) -> None:
        """End the process: politely, then for certain."""
        try:
            self.ask_to_end()
            self._process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also where a second Ctrl-C comes while it ends
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def served(model: str, command: tuple[str, ...] = ("-m", "server", "serve")) -> Iterator[ServerProcess]:
    """A server for `model`, not ready yet; it has ended when the block is left, in whichever way."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="cairn-demo-") as folder:
        log = Path(folder, "server.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command, "--model", model, "--host", "127.0.0.1", "--port", str(port)],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        server = ServerProcess(process, f"http://127.0.0.1:{port}", log)
        try:
            yield server
        finally:
            server.end()


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment() -> dict[str, str]:
    # The server's own settings may be set there, and count; but a key that only its clients know would shut us out.
    return {name: value for name, value in os.environ.items() if name != "CAIRN_API_KEYS"}
