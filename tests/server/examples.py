"""The examples of the documentation: found in its pages, and run as a reader would.

A fenced block of `sh` or `python` is an example; one of `json` or `text` right behind it is what it prints. After the
language a block may say

- `serve`: it starts a server, which all examples after it talk to; plain `cairn serve` and `make serve` stand for the
  server that the tests have anyway,
- `no-run: REASON`: it cannot run in a test.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```([a-z]*) ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
ADDRESS = re.compile(r"(?:127\.0\.0\.1|localhost):8000")
VARYING = {r"\b[0-9a-f]{12,}\b": "[0-9a-f]{12,}", r"\d[\d,.]*": r"\d[\d,.]*", "…": ".*"}
"""What is another in each run, and what it may be then."""
PLAIN = ("cairn serve", "make serve")
READY_WITHIN = 90.0
SHIMS = {
    "cairn": f'exec {sys.executable} -m clients.terminal "$@"',
    "python": f'exec {sys.executable} "$@"',
    "curl": f'exec {shutil.which("curl")} --fail-with-body --show-error "$@"',
}
"""Programs as a reader has them: this checkout's, and a curl that says by its exit code that it was refused."""


@dataclass(frozen=True)
class Example:
    """A block of a page, and the block of output behind it."""

    page: str
    line: int
    language: str
    mark: str
    code: str
    output: tuple[str, str] | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        return not self.mark.startswith("no-run")


def examples(page: str) -> list[Example]:
    """The examples of a page, in their order."""
    text = (ROOT / page).read_text()
    blocks = list(BLOCK.finditer(text))
    found = []
    for block, behind in zip(blocks, [*blocks[1:], None], strict=True):
        language, mark, code = block.groups()
        if language not in ("sh", "python"):
            continue
        output = None
        if behind and behind[1] in ("json", "text") and not text[block.end() : behind.start()].strip():
            output = (behind[1], behind[3])
        found.append(Example(page, text.count("\n", 0, block.start()) + 1, language, mark, code, output))
    return found


@dataclass
class Reader:
    """Who follows a page: a folder, a shell that remembers its variables, one Python, and a server's address."""

    folder: Path
    address: str
    _names: dict[str, Any] = field(default_factory=lambda: {"__name__": "example"})
    _servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        bin = self.folder.parent / "bin"
        bin.mkdir(exist_ok=True)
        for name, line in SHIMS.items():
            (bin / name).write_text(f"#!/bin/bash\n{line}\n")
            (bin / name).chmod(0o755)
        self._path = f"{bin}:{os.environ['PATH']}"

    def follow(self, example: Example) -> None:
        """Do what the example says; AssertionError if it fails, or prints something else than the page shows."""
        code = ADDRESS.sub(self.address, example.code)
        if example.mark == "serve":
            if example.code.strip() not in PLAIN:
                self._serve(code, example)
            return
        printed = self._shell(code, example) if example.language == "sh" else self._python(code)
        if example.output:
            check(*example.output, printed, example)

    def leave(self) -> None:
        """End the servers that were started."""
        for server in self._servers:
            server.kill()
            server.wait()

    @property
    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
        code = os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python" / "src")])
        quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        home = {"HOME": str(self.folder), "CAIRN_URL": f"http://{self.address}", "NO_PROXY": "*"}
        return {**kept, **quiet, **home, "PATH": self._path, "PYTHONPATH": code}

    def _shell(self, code: str, example: Example) -> str:
        state = self.folder.parent / "variables"
        there = f"CAIRN_URL=http://{self.address}"  # which may be another server's than before
        script = f"set -aeo pipefail; [ ! -f {state} ] || . {state}; {there}\n{code}\nexport -p > {state}\n"
        run = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 0, f"{example} ends with {run.returncode}\n{run.stdout}\n{run.stderr}"
        return run.stdout

    def _python(self, code: str) -> str:
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, "example", "exec", dont_inherit=True), self._names)
        return printed.getvalue()

    def _serve(self, code: str, example: Example) -> None:
        with httpx.Client(base_url=f"http://{self.address}", trust_env=False) as client:
            environment = {**self._environment, "CAIRN_PORT": self.address.rpartition(":")[2], "PWD": str(self.folder)}
            command = ["bash", "-c", code]
            server = subprocess.Popen(command, cwd=self.folder, env=environment, start_new_session=True)
            self._servers.append(server)
            deadline = time.monotonic() + READY_WITHIN
            while not _healthy(client):
                assert server.poll() is None, f"{example} ends with {server.returncode}"
                assert time.monotonic() < deadline, f"{example} does not come up"
                time.sleep(0.1)


def _healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def check(kind: str, shown: str, printed: str, example: Example | str) -> None:
    """What was printed has the shape of what the page shows."""
    if kind == "text":
        left = iter(printed.splitlines())
        for line in filter(None, shown.splitlines()):
            assert any(re.fullmatch(_loose(line), each) for each in left), f"{example}: no {line!r} in\n{printed}"
        return
    wanted = json.loads(re.sub(r"([{\[])(?:…|\.\.\.)([}\]])", r"\1\2", shown))
    wrong = list(differences(wanted, json.loads(printed)))
    assert not wrong, f"{example}: {', '.join(wrong)} in\n{printed}"


def _loose(line: str) -> str:
    """A pattern for a line in which numbers and ids may be others, and … anything."""
    pieces = re.split(f"({'|'.join(VARYING)})", line)
    kinds = [next((loose for kind, loose in VARYING.items() if re.fullmatch(kind, piece)), None) for piece in pieces]
    return "".join(loose or re.escape(piece) for piece, loose in zip(pieces, kinds, strict=True))


def differences(shown: Any, printed: Any, at: str = "the output") -> Iterator[str]:
    """Where the shape of what is shown is not that of what was printed."""
    if isinstance(shown, dict) and isinstance(printed, dict):
        yield from (f"{at} has no {key}" for key in shown.keys() - printed.keys())
        for key in shown.keys() & printed.keys():
            yield from differences(shown[key], printed[key], f"{at}.{key}")
    elif isinstance(shown, list) and isinstance(printed, list):
        if shown and not printed:
            yield f"{at} is empty"
        for one, other in zip(shown[:1], printed[:1], strict=False):
            yield from differences(one, other, f"{at}[0]")
    elif _type(shown) is not _type(printed):
        yield f"{at} is {printed!r}"


def _type(value: Any) -> type:
    return float if type(value) is int else type(value)
