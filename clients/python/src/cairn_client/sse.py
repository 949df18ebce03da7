"""Server-sent events: bytes in, the JSON of each `data` field out. Knows nothing of what the events mean.

Nothing here reads from anywhere: whoever has the bytes feeds them, synchronously or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cairn_client.errors import BadReply, streamed_error

Json = dict[str, Any]


class Decoder:
    """The events of one stream, which `data: [DONE]` ends; comments are passed over."""

    def __init__(self) -> None:
        self._rest = b""
        self._parts: list[str] = []
        self.done = False

    def feed(self, chunk: bytes) -> Iterator[Json]:
        """The events that `chunk` completes.

        Raises:
            ApiError: the stream reports an error
            BadReply: it holds something else than JSON objects
        """
        # Split bytes at \n only: str.splitlines would also split at characters that JSON strings may hold (U+2028).
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            data = self._data(line.removesuffix(b"\r").decode("utf-8", "replace"))
            if self.done or data is None:
                continue
            if data == "[DONE]":
                self.done = True
            else:
                yield _parse(data)

    def close(self) -> None:
        """BadReply if the stream is over before it was complete."""
        if not self.done:
            raise BadReply("the stream ended before it was complete")

    def _data(self, line: str) -> str | None:
        """The data of an event, its `data` lines joined, once an empty line ends it."""
        if line.startswith("data:"):
            self._parts.append(line[5:].removeprefix(" "))
        elif not line and self._parts:
            data, self._parts = "\n".join(self._parts), []
            return data
        return None


def _parse(data: str) -> Json:
    try:
        event = json.loads(data)
    except ValueError:
        raise BadReply(f"the stream holds something that is not JSON: {data[:80]!r}") from None
    if not isinstance(event, dict):
        raise BadReply(f"the stream holds something else than an object: {data[:80]!r}")
    if event.get("error"):
        raise streamed_error(event)
    return event
