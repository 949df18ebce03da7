"""Server-sent events: framing, an end that always comes, and a response that releases what it holds.

Knows no engine and no tokens.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.errors import problem_of

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": still reading\n\n"


def frame(body: dict[str, Any]) -> bytes:
    """One event; plain ASCII, since some clients take U+2028 for the end of a line."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


async def ending(frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """`frames`, an error told in the stream itself, and `[DONE]` in any case."""
    try:
        async for each in frames:
            yield each
    except Exception as error:
        yield frame(problem_of(error).body())
    yield DONE


Ending = Callable[[AsyncIterator[bytes]], AsyncGenerator[bytes, None]]


class EventSource(StreamingResponse):
    """A stream of events that closes `held` when it ends, also when the client left before the first byte."""

    media_type = "text/event-stream"

    def __init__(
        self, frames: AsyncIterator[bytes], held: AsyncExitStack, headers: dict[str, str], end: Ending = ending
    ) -> None:
        self._frames, self._held = end(frames), held
        # Proxies must pass each event on as it comes.
        super().__init__(self._frames, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held, aclosing(self._frames):
            await super().__call__(scope, receive, send)
