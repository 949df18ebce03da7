"""A stream of events, which closes its connection, and so ends its request, when it is left."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

import httpx

from cairn_client.events import Event, TextPiece
from cairn_client.operations import Streaming
from cairn_client.sse import Decoder
from cairn_client.sync.sender import Sender
from cairn_client.types import Answer

Told = TypeVar("Told")
Whole = TypeVar("Whole")


class Stream(Generic[Told, Whole]):
    """Events as they come: `with` begins the request, iterating reads it, leaving the block cancels the rest."""

    def __init__(self, sender: Sender, streaming: Streaming[Told, Whole]) -> None:
        self._sender, self._request = sender, streaming.request
        self._collector, self._decoder = streaming.collector(), Decoder()
        self._response: httpx.Response | None = None
        self._events = self._read()  # one for all loops: a loop that was left can be gone on with

    def __enter__(self) -> Self:
        self._response = self._sender.open(self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Told]:
        return self._events

    def __next__(self) -> Told:
        return next(self._events)

    def _read(self) -> Iterator[Told]:
        if self._response is None:
            raise RuntimeError("a stream is read inside of its `with` block")
        for piece in self._sender.pieces(self._response):
            for chunk in self._decoder.feed(piece):
                yield from self._collector.events(chunk)
            if self._decoder.done:
                return
        self._decoder.close()

    @property
    def answer(self) -> Whole:
        """The whole of what was read until now."""
        headers = {} if self._response is None else self._response.headers
        return self._collector.answer(headers.get("x-session-id"))

    def close(self) -> None:
        """Leave: the server ends the request, and a session keeps what it has."""
        if self._response is not None:
            self._response.close()


class AnswerStream(Stream[Event, Answer]):
    """The stream of a chat or a completion."""

    def text(self) -> Iterator[str]:
        """The text of the first choice alone."""
        for event in self:
            if isinstance(event, TextPiece) and event.index == 0:
                yield event.text
