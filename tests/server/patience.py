"""Waiting for a server process: as long as the machine leaves it no time to run, not for ever where it hangs.

Patience is counted in looks. Who is stopped, or waits for a core, does not look, so a machine that is held by something
else for minutes costs nothing. Looks at a process that is itself stopped do not count.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

LOOK = 0.1
"""Seconds between two looks."""

Process = subprocess.Popen[bytes]


def until(true: Callable[[], bool], process: Process, seconds: float, otherwise: str) -> None:
    """Wait until something holds of a process that has not ended.

    Args:
        seconds: of looking
        otherwise: what is wrong if it does not come to hold
    """
    left = seconds
    while left > 0:
        assert process.poll() is None, f"{otherwise} (exit code {process.returncode})"
        if true():
            return
        time.sleep(LOOK)
        left -= LOOK * _may_run(process)
    raise AssertionError(f"{otherwise} within {seconds:g} s")


@contextmanager
def watched(process: Process, client: httpx.Client, seconds: float) -> Iterator[Callable[[object], None]]:
    """Kill a process that does not answer, so that nobody waits for it for ever, and raise in the end.

    Args:
        client: one that waits without an end; others tell of their answers themselves
        seconds: of looking without an answer to anybody

    Yields:
        What is to be called at each answer.
    """
    watch = _Watch(process, seconds)
    client.timeout, client.event_hooks = httpx.Timeout(None), {"response": [watch.answered]}
    try:
        with watch.looking():
            yield watch.answered
    finally:
        client.event_hooks = {}
        assert not watch.gave_up, f"the server has not answered anything for {seconds:g} s"


class _Watch:
    def __init__(self, process: Process, seconds: float) -> None:
        self.gave_up = False
        self._process, self._seconds = process, seconds
        self._left = seconds
        self._over = threading.Event()

    def answered(self, _: object = None) -> None:
        self._left = self._seconds

    @contextmanager
    def looking(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK):
            self._left -= LOOK * _may_run(self._process)
            if self._left <= 0 and self._process.poll() is None:
                self.gave_up = True
                self._process.kill()


def _may_run(process: Process) -> bool:
    """Whether a process is not stopped; where it cannot be told, it is not."""
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] != "T"
