"""`cairn` as users run it: with pipes, or in a pseudo-terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.terminal.cli import main
from tests.clients.conftest import KEY

CAIRN = [sys.executable, "-m", "clients.terminal"]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>]|\r")
Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]


@pytest.fixture
def environment(tmp_path: Path, url: str) -> dict[str, str]:
    """A user with an empty home, who knows the server and its key."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CAIRN_", "XDG_"))}
    server = {"CAIRN_URL": url, "CAIRN_API_KEY": KEY}
    terminal = {"TERM": "xterm-256color", "COLUMNS": "110", "LINES": "40"}
    return {**kept, **server, **terminal, "HOME": str(tmp_path), "PYTHONUTF8": "1"}


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `cairn` with arguments and standard input: in this process, which is what takes no time to start."""

    def cairn(*arguments: str | Path, stdin: str = "", **variables: str) -> Result:
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(os, "environ", {**environment, **variables})
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            try:
                code = main([str(argument) for argument in arguments])
            except SystemExit as end:
                code = int(end.code or 0)
        told = [stream.buffer.getvalue().decode() for stream in (out, err)]
        return subprocess.CompletedProcess(arguments, code, *told)

    return cairn


@pytest.fixture
def program(environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs `cairn` as a program of its own."""

    def cairn(*arguments: str | Path, **more: Any) -> Result:
        command = [*CAIRN, *map(str, arguments)]
        streams = {"capture_output": True, "text": True, **more}
        return subprocess.run(command, cwd=tmp_path, env=environment, timeout=60, check=False, **streams)

    return cairn


CONTROLLED = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"
"""Opens the terminal, which then controls the process, so that Ctrl-C works, and becomes the program. Not as a
`preexec_fn`: that copies all of the tests' process, which Linux refuses while it has mapped more than there is."""


class Terminal:
    """A program in a pseudo-terminal: what it shows is waited for, keys are sent to it."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, 110))
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", CONTROLLED, *command], cwd=folder, env=environment, stdin=slave, stdout=slave,
            stderr=slave, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.raw = ""
        self._seen = 0

    @property
    def shown(self) -> str:
        """All that was shown, without control sequences."""
        return CONTROL.sub("", self.raw)

    def wait_for(self, text: str, within: float = 20.0) -> str:
        """What was shown since the last wait, up to and with `text`."""
        deadline = time.monotonic() + within
        while (found := self.shown.find(text, self._seen)) < 0:
            more = time.monotonic() < deadline and self._read()
            assert more, f"no {text!r} in {self.shown[self._seen :]!r}"
        start, self._seen = self._seen, found + len(text)
        return self.shown[start : self._seen]

    def say(self, line: str) -> None:
        """Send a line once it is asked for: the line below the prompt ends so."""
        self.wait_for(" tokens ")
        self.send(line)

    def send(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def end(self, within: float = 20.0) -> int:
        """Wait until the program has ended; its exit code."""
        deadline = time.monotonic() + within
        while self._read():
            assert time.monotonic() < deadline, self.shown
        return self.process.wait(within)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _read(self) -> bool:
        """Whether more may come."""
        if select.select([self._master], [], [], 0.1)[0]:
            try:
                piece = os.read(self._master, 65536).decode("utf-8", "replace")
            except OSError:  # the program has ended
                return False
            self.raw += piece
            if "\x1b[6n" in piece:  # where the cursor is
                self.send("\x1b[1;1R")
        return True


@pytest.fixture
def terminal(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts `cairn` with arguments in a pseudo-terminal of so many columns."""
    started: list[Terminal] = []

    def start(*arguments: str, columns: int = 110) -> Terminal:
        started.append(Terminal([*CAIRN, *arguments], environment | {"COLUMNS": str(columns)}, tmp_path))
        return started[-1]

    yield start
    for each in started:
        each.close()
