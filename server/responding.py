"""Answers a request that is ready to run: as one JSON body, or as a stream of chunks.

Owns the order of what is sent, and the end of work for a client that has left. What the parts look like is
`server.shapes`'s.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from engine import Engine
from server.answers import Choices, Silence, choices_of, outputs
from server.asking import Asked
from server.async_engine import EventStream
from server.choices import Delta, Ended
from server.context import SESSION_HEADER
from server.errors import ApiError
from server.provenance import retrieval_body
from server.service import Service
from server.shapes import Json, Shape, progress_body, timings_body, usage_body
from server.streaming import KEEPALIVE, EventSource, frame

Result = TypeVar("Result")


async def respond(request: Request, service: Service, asked: Asked, shape: Shape) -> Response:
    """The response to `asked`."""
    answer = Answer(service, asked, shape)
    headers = session_headers(asked.session_id)
    if not asked.stream:
        return JSONResponse(await while_connected(request, answer.whole()), headers=headers)
    held = AsyncExitStack()
    stream = await held.enter_async_context(answer.open())  # refusals come before the first byte
    return EventSource(answer.frames(stream), held, headers)


@dataclass
class Answer:
    """One request being answered."""

    service: Service
    asked: Asked
    shape: Shape
    ends: list[Ended] = field(default_factory=list)

    def open(self) -> EventStream:
        """Submits the request when entered."""
        return self.service.model.engine.open(self.asked.generations)

    async def whole(self) -> Json:
        """The complete body."""
        deltas: list[Delta] = []
        async with self.open() as stream:
            async for output in outputs(stream, self.choices()):
                if isinstance(output, Delta):
                    deltas.append(output)
                elif isinstance(output, Ended):
                    self.ends.append(output)
        self.ends.sort(key=lambda ended: ended.index)
        choices = [self.shape.whole([d for d in deltas if d.index == ended.index], ended) for ended in self.ends]
        envelope = self.shape.envelope(chunk=False)
        return {**envelope, "choices": choices, "usage": usage_body(self.ends), **await self.extras(self.ends)}

    async def frames(self, stream: EventStream) -> AsyncIterator[bytes]:
        """The chunks, as server-sent events."""
        choices = self.choices()
        for choice in choices.values():
            if opening := self.shape.opening(choice.index):
                yield self._chunk([opening])
        silence = self.service.settings.keepalive_seconds
        async for output in outputs(stream, choices, silence, self.asked.return_progress):
            if isinstance(output, Delta):
                yield self._chunk([self.shape.delta(output)])
            elif isinstance(output, Ended):
                self.ends.append(output)
                yield self._chunk([self.shape.closing(output)], **await self.extras([output]))
            elif isinstance(output, Silence):
                yield KEEPALIVE
            else:
                yield self._chunk([], prompt_progress=progress_body(output))
        if self.asked.include_usage:
            yield self._chunk([], usage=usage_body(self.ends))

    def choices(self) -> Choices:
        """The answers in the making."""
        pieces = self.service.model.tokenizer.pieces
        return choices_of(self.asked.generations, pieces, self.asked.stops, self.asked.form)

    def _chunk(self, choices: list[Json], **more: Any) -> bytes:
        usage = {"usage": None} if self.asked.include_usage else {}
        return frame({**self.shape.envelope(chunk=True), "choices": choices, **usage, **more})

    async def extras(self, ends: list[Ended]) -> Json:
        """What no other server tells: timings, and the passages that the answer read."""
        finished = ends[0].finished
        retrieval: Json = {}
        if finished.retrieval is not None:
            tokens = await self._tokens(ends[0])
            model, session = self.service.model, self.asked.session_id
            documents = await asyncio.to_thread(model.library.of, self.asked.tenant, session)
            body = (finished.retrieval, tokens, model.tokenizer.pieces, documents)
            retrieval |= await asyncio.to_thread(retrieval_body, *body)
        if finished.audit is not None:
            retrieval["audit"] = dataclasses.asdict(finished.audit)
        return {"timings": timings_body(ends)} | ({"retrieval": retrieval} if retrieval else {})

    async def _tokens(self, ended: Ended) -> list[int]:
        """All text tokens that the answer could read."""
        if self.asked.session_id is None:
            return [*self.asked.generations[0].tokens, *ended.tokens]
        engine = self.service.model.engine
        return await engine.call(Engine.session_tokens, self.asked.session_id, self.asked.tenant)


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`; a client that leaves ends it."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(499, "the client has left", code="client_closed_request")
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def session_headers(session_id: str | None) -> dict[str, str]:
    return {} if session_id is None else {SESSION_HEADER: session_id}


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
