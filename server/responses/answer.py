"""Answers a response request that is ready to run: as one body, or as a stream of OpenAI's typed events.

Owns the order of events, and that a response is stored before its end is told.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

from engine import Progress
from server.answers import Silence, outputs
from server.async_engine import EventStream
from server.choices import Delta, Ended
from server.errors import problem_of
from server.responding import Answer
from server.responses.ground import Ground, keep
from server.responses.output import Output
from server.responses.shapes import Json, ResponseShape, status_of
from server.streaming import KEEPALIVE, EventSource


@dataclass
class ResponseAnswer:
    """One response in the making."""

    answer: Answer
    ground: Ground
    shape: ResponseShape

    def __post_init__(self) -> None:
        self._output = Output(self.shape.event)

    def open(self) -> EventStream:
        """Submits the request when entered."""
        return self.answer.open()

    async def whole(self) -> Json:
        """The complete body."""
        async with self.open() as stream:
            async for output in outputs(stream, self.answer.choices()):
                if isinstance(output, Delta):
                    list(self._output.add(output))
                elif isinstance(output, Ended):
                    list(self._output.finish(status_of(output)))
                    return await self._finished(output)
        raise AssertionError("a generation ends in Finished or in an error")

    async def events(self, stream: EventStream) -> AsyncIterator[bytes]:
        """What happens, as server-sent events; an error is told as the response's failure."""
        for event in self.shape.begun():
            yield event
        try:
            async for each in self._told(stream):
                yield each
        except Exception as error:
            yield self.shape.event("response.failed", response=self.shape.failed(problem_of(error)))

    async def _told(self, stream: EventStream) -> AsyncIterator[bytes]:
        service, asked = self.answer.service, self.answer.asked
        silence = service.settings.keepalive_seconds
        async for output in outputs(stream, self.answer.choices(), silence, asked.return_progress):
            if isinstance(output, Silence):
                yield KEEPALIVE
            elif isinstance(output, Progress):
                yield self.shape.progress(output)
            elif isinstance(output, Delta):
                for event in self._output.add(output):
                    yield event
            else:
                for event in self._output.finish(status_of(output)):
                    yield event
                yield self.shape.ended(await self._finished(output))

    async def _finished(self, ended: Ended) -> Json:
        """The body, stored if it is to be."""
        body = self.shape.finished(self._output.items, ended, **await self.answer.extras([ended]))
        service = self.answer.service
        if not self.shape.request.keeps:
            return body | {"session_id": None} if self.ground.owned else body
        kept = await keep(service.model, self.ground, body, service.settings.session_ttl)
        return body if kept else body | {"store": False, "session_id": None}


class ResponseEvents(EventSource):
    """The stream of a response: its last event ends it, as OpenAI's do; no `[DONE]` follows."""

    def __init__(self, events: AsyncIterator[bytes], held: AsyncExitStack, headers: dict[str, str]) -> None:
        super().__init__(events, held, headers, _as_it_is)


async def _as_it_is(events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    async for event in events:
        yield event
