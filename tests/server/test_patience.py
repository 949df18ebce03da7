"""Tests wait for a server as long as it takes where it may not run, and not for ever where it hangs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.server.patience import Process, until, watched


@pytest.fixture
def sleeping() -> Iterator[Process]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def test_what_does_not_come_is_not_awaited_for_ever(sleeping: Process) -> None:
    until(after(0.1), sleeping, 1.0, "it does not come")
    with pytest.raises(AssertionError, match=r"it does not come within 0\.3 s"):
        until(after(60), sleeping, 0.3, "it does not come")


def test_a_stopped_process_has_time(sleeping: Process) -> None:
    sleeping.send_signal(signal.SIGSTOP)
    until(after(1.0), sleeping, 0.3, "it does not come")


def test_a_dead_process_is_not_awaited(sleeping: Process) -> None:
    sleeping.kill()
    sleeping.wait()
    with pytest.raises(AssertionError, match="exit code -9"):
        until(lambda: True, sleeping, 60, "it does not come")


def test_a_process_that_never_answers_is_killed(sleeping: Process) -> None:
    with pytest.raises(AssertionError, match="has not answered anything"):
        ask(sleeping)


def ask(silent: Process) -> None:
    with httpx.Client() as client, watched(silent, client, 0.3):
        silent.wait(timeout=60)
        raise httpx.ReadError("what a client sees of it")
