"""A served model as a bench sees it: the process and what it holds, and streams that note when each token came.

The clients speak plain HTTP/1.1 over asyncio's streams: on a machine of few cores a client that costs as much as the
server would measure itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

TICK = os.sysconf("SC_CLK_TCK")
DONE = b"data: [DONE]"
KEPT = 5.0
"""Clients do not trust a connection that was silent for longer: a server may have closed it meanwhile."""


@dataclass(frozen=True)
class Held:
    """What a server holds at one moment: bytes of memory, threads, file descriptors, blocks, requests."""

    resident: int
    threads: int
    descriptors: int
    blocks: int
    requests: int


class ServerProcess:
    """A server of its own on a free port; a context that ends it.

    Args:
        model: folder or hub name
        settings: by name, as `cairn serve` takes them
    """

    def __init__(self, model: str, **settings: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if value is not None]
        command = [sys.executable, "-m", "server", "serve", "--model", model, f"--port={self.port}", *options]
        self._begun = time.perf_counter()
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=600, trust_env=False)

    def __enter__(self) -> ServerProcess:
        self.ready_seconds = self._await_ready()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.client.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _await_ready(self) -> float:
        """Seconds from the start of the process to the first 200 of /ready."""
        while self._process.poll() is None:
            try:
                if self.client.get("/ready").status_code == 200:
                    return time.perf_counter() - self._begun
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise RuntimeError(f"the server ended with exit code {self._process.returncode}")

    def metrics(self) -> dict[str, float]:
        """The values of /metrics, by the name with its labels."""
        lines = [line for line in self.client.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def thread_seconds(self) -> dict[int, float]:
        """CPU seconds of each thread; the event loop's is the process's first."""
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        return {int(task.name): _cpu_seconds(task / "stat") for task in tasks}

    def process_seconds(self) -> float:
        """CPU seconds of all threads, of those that have ended, too."""
        return _cpu_seconds(Path(f"/proc/{self._process.pid}/stat"))

    @property
    def loop_thread(self) -> int:
        return self._process.pid

    def held(self) -> Held:
        """What it holds now."""
        folder, metrics = Path(f"/proc/{self._process.pid}"), self.metrics()
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return Held(
            1024 * int(status["VmRSS"].split()[0]),
            int(status["Threads"]),
            len(list((folder / "fd").iterdir())),
            int(sum(value for name, value in metrics.items() if name.startswith("cairn_kv_tier_blocks"))),
            int(metrics["cairn_num_requests_running"] + metrics["cairn_num_requests_waiting"]),
        )

    def settle(self, seconds: float = 60.0) -> Held:
        """What it holds once no request runs; RuntimeError if one still does after so many seconds."""
        deadline = time.perf_counter() + seconds
        while (held := self.held()).requests:
            if time.perf_counter() > deadline:
                raise RuntimeError(f"{held.requests} requests still run")
            time.sleep(0.1)
        return held


def _cpu_seconds(stat: Path) -> float:
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


@dataclass
class Stream:
    """One streamed answer.

    Attributes:
        status: of HTTP
        retry_after: what a refusal says, or nothing
        sent, answered: when the request went out and when its headers came, as time.perf_counter()
        came: when each event came
        read: the latest progress of reading the prompt, and when it came, for each event that tells one
        ended: `[DONE]` came
        error: what the stream told instead of an answer
    """

    status: int = 0
    retry_after: str | None = None
    sent: float = 0.0
    answered: float = 0.0
    came: list[float] = field(default_factory=list)
    read: list[tuple[float, int]] = field(default_factory=list)
    ended: bool = False
    error: str | None = None


class Connection:
    """One connection that stays open from request to request, and is opened anew if there was none for KEPT seconds."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._used = 0.0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        if time.perf_counter() - self._used > KEPT:
            await self.close()
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._used = time.perf_counter()

    async def close(self) -> None:
        """Leave, whatever the server is doing."""
        if self._writer is not None:
            self._writer.transport.abort()
            self._reader = self._writer = None

    async def stream(self, path: str, body: dict[str, Any], into: Stream | None = None, leave: int = -1) -> Stream:
        """Post `body` and read the answer to its end; leaves after `leave` events (-1 never).

        Args:
            into: filled as the answer comes, for a caller that cancels this
        """
        told = into or Stream()
        await self.open()
        assert self._reader is not None
        assert self._writer is not None
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
        )
        told.sent = time.perf_counter()
        self._writer.write(head.encode() + b"\r\n\r\n" + data)
        if leave == 0:
            await self.close()
            return told
        headers = await self._headers(self._reader, told)
        if "content-length" in headers:  # a refusal
            await self._reader.readexactly(int(headers["content-length"]))
            return told
        while line := await self._reader.readline():
            if line == b"0\r\n":  # the last chunk
                await self._reader.readline()
                return told
            self._take(line, told)
            if len(told.came) == leave and not told.ended:
                await self.close()
                return told
        await self.close()
        return told

    async def _headers(self, reader: asyncio.StreamReader, told: Stream) -> dict[str, str]:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        told.answered, told.status = time.perf_counter(), int(lines[0].split()[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        told.retry_after = headers.get("retry-after")
        return headers

    @staticmethod
    def _take(line: bytes, told: Stream) -> None:
        if not line.startswith(b"data: "):
            return
        now = time.perf_counter()
        if line.startswith(DONE):
            told.ended = True
        elif b'"prompt_progress":{' in line:
            told.read.append((now, json.loads(line[6:])["prompt_progress"]["processed"]))
        elif line.startswith(b'data: {"error"'):
            told.error = json.loads(line[6:])["error"]["message"]
        else:
            told.came.append(now)


def completion(prompt: str | Sequence[int], tokens: int, **more: Any) -> dict[str, Any]:
    """The body of a streamed completion that draws exactly `tokens`."""
    asked = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True, "temperature": 0}
    return asked | more


def text(count: int, seed: int) -> list[int]:
    """Token ids that are text to no one: what serving costs does not depend on it."""
    rng = random.Random(seed)
    return [rng.randrange(16, 4000) for _ in range(count)]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of all lie; 0 of none."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0
