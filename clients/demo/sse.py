"""Server-sent events: bytes in, the JSON of each `data` field out. Knows nothing of what the events mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from clients.demo.errors import RequestError

Json = dict[str, Any]


def events(chunks: Iterable[bytes]) -> Iterator[Json]:
    """The JSON objects of a stream up to `[DONE]`; comments are passed over.

    Raises:
        RequestError: the stream reports an error, ends before `[DONE]`, or holds something else than JSON
    """
    for data in _data(_lines(chunks)):
        if data == "[DONE]":
            return
        event = _parse(data)
        if event.get("error"):
            raise RequestError(f"the server broke off: {error_message(event)}")
        yield event
    raise RequestError("the stream ended before it was complete")


def error_message(body: Json) -> str:
    """The message of an OpenAI error body."""
    error = body.get("error")
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    # Split bytes at \n only: str.splitlines would also split at characters that JSON strings may hold (U+2028).
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.removesuffix(b"\r").decode("utf-8", "replace") for line in lines)


def _data(lines: Iterable[str]) -> Iterator[str]:
    """The data of each event: its `data` lines joined; an event ends at an empty line."""
    parts: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            parts.append(line[5:].removeprefix(" "))
        elif not line and parts:
            yield "\n".join(parts)
            parts = []


def _parse(data: str) -> Json:
    try:
        event = json.loads(data)
    except ValueError:
        raise RequestError(f"the stream holds something that is not JSON: {data[:80]!r}") from None
    if not isinstance(event, dict):
        raise RequestError(f"the stream holds something else than an object: {data[:80]!r}")
    return event
