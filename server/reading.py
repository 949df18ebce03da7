"""A text is read into a session without an answer: progress, then the session as it is afterwards.

Owns what clients see of a session. Knows no route, and not where the text comes from.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from engine import Engine, Generation, Progress, SamplingParams, SessionInfo
from server.answers import Silence, choices_of, outputs
from server.async_engine import EventStream
from server.choices import Ended
from server.conditions import Precondition, etag
from server.responding import session_headers, while_connected
from server.service import Service
from server.shapes import Json, progress_body, timings_body, usage_body
from server.streaming import KEEPALIVE, EventSource, frame


def reading_of(tokens: Sequence[int], session_id: str, tenant: str) -> Generation:
    """A generation that reads tokens into a session and answers nothing."""
    sampling = SamplingParams(max_tokens=0)
    return Generation(uuid.uuid4().hex, tuple(tokens), sampling, session_id=session_id, tenant=tenant)


class Reading:
    """A text being read into a session.

    Args:
        if_match: what must hold of the session when the reading begins
        more: further fields of the answer, told where the text begins and ends in the session, in tokens
    """

    def __init__(
        self,
        service: Service,
        generation: Generation,
        if_match: Precondition,
        more: Callable[[int, int], Awaitable[Json]] | None = None,
    ) -> None:
        self._service, self._generation, self._if_match, self._more = service, generation, if_match, more
        self._session, self._tenant = str(generation.session_id), generation.tenant

    async def respond(self, request: Request, *, stream: bool) -> Response:
        """The answer, whole or as a stream of progress that ends in it."""
        headers = session_headers(self._session)
        if not stream:
            info, body = await while_connected(request, self._whole())
            return JSONResponse(body, headers={**headers, "ETag": etag(info)})
        held = AsyncExitStack()
        events = await held.enter_async_context(self._open())  # refusals come before the first byte
        return EventSource(self._frames(events), held, headers)

    def _open(self) -> EventStream:
        """Submits the text when entered."""
        engine = self._service.model.engine
        return engine.open([self._generation], lambda of: self._if_match.holds(of, self._session, self._tenant))

    async def _whole(self) -> tuple[SessionInfo, Json]:
        async with self._open() as stream:
            async for output in self._outputs(stream):
                if isinstance(output, Ended):
                    return await self._told(output)
        raise AssertionError("a generation ends in Finished or in an error")

    async def _frames(self, stream: EventStream) -> AsyncIterator[bytes]:
        """Progress, then the answer."""
        async for output in self._outputs(stream):
            if isinstance(output, Progress):
                yield frame({"object": "session.progress", "prompt_progress": progress_body(output)})
            elif isinstance(output, Silence):
                yield KEEPALIVE
            elif isinstance(output, Ended):
                _, body = await self._told(output)
                yield frame(body)

    def _outputs(self, stream: EventStream) -> AsyncIterator[Any]:
        choices = choices_of([self._generation], self._service.model.tokenizer.pieces, ())
        return outputs(stream, choices, self._service.settings.keepalive_seconds)

    async def _told(self, ended: Ended) -> tuple[SessionInfo, Json]:
        info = await self._service.model.engine.call(Engine.get_session, self._session, self._tenant)
        appended, end = len(self._generation.tokens), ended.finished.usage.prompt_tokens
        told = {"appended_tokens": appended, "usage": usage_body([ended]), "timings": timings_body([ended])}
        more = await self._more(end - appended, end) if self._more else {}
        return info, session_body(info) | told | more


def session_body(info: SessionInfo) -> Json:
    """A session as clients see it."""
    return {
        "id": info.id,
        "object": "session",
        "tokens": info.tokens,
        "created": int(info.created),
        "used": int(info.used),
        "parent": info.parent,
        "busy": info.busy,
        "pinned": info.pinned,
        "ttl_seconds": info.ttl,
    }


def answer(info: SessionInfo, status: int = 200, **more: Any) -> JSONResponse:
    """A session as a response, with what else there is to tell."""
    return JSONResponse(session_body(info) | more, status, {**session_headers(info.id), "ETag": etag(info)})
