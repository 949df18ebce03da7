"""The server's side of reading a file: starts the worker, waits no longer than it may, and takes the text.

Owns how many files are read at once, and the end of a worker whose client has left. Knows no format and no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
from pathlib import Path

from server.documents.base import Extracted, Limits, Unreadable

ROOT = Path(__file__).parents[2]
AT_ONCE = 2
"""Files that are read at the same time; each may take `memory_bytes`."""


class Extractor:
    """Reads files, each in a process of its own."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._free = asyncio.Semaphore(AT_ONCE)

    async def extract(self, data: bytes, kind: str, charset: str | None) -> Extracted:
        """The text of a file; raises Unreadable."""
        async with self._free:
            answer = await self._run(data, {"kind": kind, "charset": charset})
        line, _, text = answer.partition(b"\n")
        if not line:
            raise Unreadable("document_too_complex", "reading the file took more memory or time than it may")
        told = json.loads(line)
        if "code" in told:
            raise Unreadable(told["code"], told["message"])
        return Extracted(await asyncio.to_thread(text.decode), **told)

    async def _run(self, data: bytes, options: dict[str, str | None]) -> bytes:
        """What the worker says; nothing if it was ended."""
        arguments = json.dumps({**options, "limits": dataclasses.asdict(self.limits)})
        command = [sys.executable, "-X", "utf8", "-m", "server.documents.worker", arguments]
        pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        # A session of its own: Ctrl-C is for the server. No environment: it holds the server's keys.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=none, cwd=ROOT, env={}, start_new_session=True
        )
        try:
            async with asyncio.timeout(self.limits.seconds):
                said, _ = await process.communicate(data)
                return said
        except TimeoutError:
            message = f"reading the file takes longer than {self.limits.seconds:g} seconds; split it or send its text"
            raise Unreadable("document_too_complex", message) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
