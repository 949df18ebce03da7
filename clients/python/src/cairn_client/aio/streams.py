"""A stream of events, which closes its connection, and so ends its request, when it is left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Generic, Self, TypeVar

import httpx

from cairn_client.aio.sender import AsyncSender
from cairn_client.events import Event, TextPiece
from cairn_client.operations import Streaming
from cairn_client.sse import Decoder
from cairn_client.types import Answer

Told = TypeVar("Told")
Whole = TypeVar("Whole")


class AsyncStream(Generic[Told, Whole]):
    """Events as they come: `async with` begins the request, iterating reads it, leaving the block cancels the rest."""

    def __init__(self, sender: AsyncSender, streaming: Streaming[Told, Whole]) -> None:
        self._sender, self._request = sender, streaming.request
        self._collector, self._decoder = streaming.collector(), Decoder()
        self._response: httpx.Response | None = None
        self._events = self._read()  # one for all loops: a loop that was left can be gone on with

    async def __aenter__(self) -> Self:
        self._response = await self._sender.open(self._request)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[Told]:
        return self._events

    async def __anext__(self) -> Told:
        return await anext(self._events)

    async def _read(self) -> AsyncIterator[Told]:
        if self._response is None:
            raise RuntimeError("a stream is read inside of its `async with` block")
        async for piece in self._sender.pieces(self._response):
            for chunk in self._decoder.feed(piece):
                for event in self._collector.events(chunk):
                    yield event
            if self._decoder.done:
                return
        self._decoder.close()

    @property
    def answer(self) -> Whole:
        """The whole of what was read until now."""
        headers = {} if self._response is None else self._response.headers
        return self._collector.answer(headers.get("x-session-id"))

    async def close(self) -> None:
        """Leave: the server ends the request, and a session keeps what it has."""
        if self._response is not None:
            await self._response.aclose()


class AsyncAnswerStream(AsyncStream[Event, Answer]):
    """The stream of a chat or a completion."""

    async def text(self) -> AsyncIterator[str]:
        """The text of the first choice alone."""
        async for event in self:
            if isinstance(event, TextPiece) and event.index == 0:
                yield event.text
