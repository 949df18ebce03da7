"""The child process always ends; a command that behaves badly stands for a server that does."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from clients.demo.errors import ServerError
from clients.demo.process import free_port, served

SLEEPS = ("-c", "import time; print('up', flush=True); time.sleep(60)")
STUBBORN = (
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
)
DIES = ("-c", "import sys; print('line\\n' * 50); print('no such model'); sys.exit(3)")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_free_port_is_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


@pytest.mark.parametrize("command", [SLEEPS, STUBBORN])
def test_it_ends_with_the_block(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.demo.process.END_WITHIN", 0.5)
    with served("model", command) as server:
        server.wait_until(lambda: "up" in server.tail())
        pid = server.pid
        assert (server.memory() or 1) > 0
    assert not alive(pid)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_it_ends_with_an_error(error: type[BaseException]) -> None:
    pids: list[int] = []

    def visit() -> None:
        with served("model", SLEEPS) as server:
            pids.append(server.pid)
            raise error

    with pytest.raises(error):
        visit()
    assert not alive(pids[0])


def test_one_that_dies_tells_the_end_of_its_log() -> None:
    with served("model", DIES) as server, pytest.raises(ServerError, match="exit code 3") as caught:
        server.wait_until(lambda: False)
    assert caught.value.log.endswith("no such model")
    assert len(caught.value.log.splitlines()) <= 20


def test_one_that_is_never_ready_is_given_up() -> None:
    with served("model", SLEEPS) as server, pytest.raises(ServerError, match="not ready"):
        server.wait_until(lambda: False, within=0.2)


def test_the_log_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with served("model", SLEEPS):
        assert list(tmp_path.glob("cairn-demo-*/server.log"))
    assert not list(tmp_path.iterdir())


def test_keys_of_the_environment_do_not_shut_the_demo_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIRN_API_KEYS", "secret")
    monkeypatch.setenv("CAIRN_BLOCKS_PER_HEAD", "4")
    command = ("-c", "import os; print(sorted(name for name in os.environ if name.startswith('CAIRN_')))")
    with served("model", command) as server, pytest.raises(ServerError) as caught:
        server.wait_until(lambda: False)
    assert caught.value.log == "['CAIRN_BLOCKS_PER_HEAD']"
