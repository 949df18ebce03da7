"""/v1/sessions: create, list, get, change, read the text, append, fork, delete. One belongs to its creator's key."""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from engine import Engine, Generation, Progress, SamplingParams, SessionInfo
from server.answers import Silence, choices_of, outputs
from server.async_engine import EventStream
from server.choices import Ended
from server.context import Serving, Tenant
from server.errors import ApiError
from server.provenance import excerpts
from server.responding import session_headers, while_connected
from server.schemas import MAX_TOKENS, AppendRequest, SessionRequest, Wire
from server.service import Service
from server.shapes import progress_body, timings_body, usage_body
from server.streaming import KEEPALIVE, EventSource, frame

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

Edge = Annotated[int | None, Query(ge=0, le=MAX_TOKENS)]


@router.post("", status_code=201)
async def create_session(service: Serving, tenant: Tenant, body: SessionRequest | None = None) -> JSONResponse:
    """A new, empty session."""
    asked = body or SessionRequest()
    create = functools.partial(Engine.create_session, pinned=bool(asked.pinned), ttl=asked.ttl_seconds)
    return _answer(await service.model.engine.call(create, tenant), 201)


@router.get("")
async def list_sessions(service: Serving, tenant: Tenant) -> dict[str, Any]:
    """All sessions of the caller."""
    infos = await service.model.engine.call(Engine.list_sessions, tenant)
    return {"object": "list", "data": [session_body(info) for info in infos]}


@router.get("/{session_id}")
async def get_session(session_id: str, service: Serving, tenant: Tenant) -> JSONResponse:
    """One session."""
    return _answer(await service.model.engine.call(Engine.get_session, session_id, tenant))


@router.patch("/{session_id}")
async def change_session(session_id: str, body: SessionRequest, service: Serving, tenant: Tenant) -> JSONResponse:
    """Pin a session, or set how long it is kept without use."""
    change = functools.partial(Engine.change_session, pinned=body.pinned, ttl=body.ttl_seconds)
    return _answer(await service.model.engine.call(change, session_id, tenant))


@router.get("/{session_id}/text")
async def get_text(
    session_id: str, service: Serving, tenant: Tenant, start_token: Edge = None, end_token: Edge = None
) -> JSONResponse:
    """What a session holds, as text: all of it, or some tokens."""
    tokens = await service.model.engine.call(Engine.session_tokens, session_id, tenant)
    start, end = start_token or 0, len(tokens) if end_token is None else end_token
    if end > len(tokens):
        raise ApiError(400, f"end_token: the session has {len(tokens)} tokens", "end_token", "invalid_value")
    if start > end:
        raise ApiError(400, f"start_token: must not pass the end, {end}", "start_token", "invalid_value")
    pieces = service.model.tokenizer.pieces
    [told] = await asyncio.to_thread(excerpts, tokens, [(start, end)], pieces)
    return JSONResponse({"id": session_id, "object": "session.text", **told}, headers=session_headers(session_id))


@router.post("/{session_id}/fork", status_code=201)
async def fork_session(session_id: str, service: Serving, tenant: Tenant, body: Wire | None = None) -> JSONResponse:
    """A new session with the same past, which is shared and not copied."""
    return _answer(await service.model.engine.call(Engine.fork_session, session_id, tenant), 201)


@router.delete("/{session_id}")
async def delete_session(session_id: str, service: Serving, tenant: Tenant) -> dict[str, Any]:
    """Forget a session."""
    await service.model.engine.call(Engine.delete_session, session_id, tenant)
    return {"id": session_id, "object": "session.deleted", "deleted": True}


@router.post("/{session_id}/append")
async def append(session_id: str, body: AppendRequest, request: Request, service: Serving, tenant: Tenant) -> Response:
    """Read a text into the session without answering; the text is taken literally."""
    info = await service.model.engine.call(Engine.get_session, session_id, tenant)
    tokens = await asyncio.to_thread(service.model.tokenizer.encode, body.text, begin=info.tokens == 0)
    sampling = SamplingParams(max_tokens=0)
    generation = Generation(uuid.uuid4().hex, tuple(tokens), sampling, session_id=session_id, tenant=tenant)
    reading = Reading(service, generation)
    if not body.stream:
        return JSONResponse(await while_connected(request, reading.whole()), headers=session_headers(session_id))
    held = AsyncExitStack()
    stream = await held.enter_async_context(reading.open())
    return EventSource(reading.frames(stream), held, session_headers(session_id))


class Reading:
    """A text being read into a session."""

    def __init__(self, service: Service, generation: Generation) -> None:
        self._service, self._generation = service, generation

    def open(self) -> EventStream:
        """Submits the text when entered."""
        return self._service.model.engine.open([self._generation])

    async def whole(self) -> dict[str, Any]:
        """The answer when all is read."""
        async with self.open() as stream:
            async for output in self._outputs(stream):
                if isinstance(output, Ended):
                    return await self._body(output)
        raise AssertionError("a generation ends in Finished or in an error")

    async def frames(self, stream: EventStream) -> AsyncIterator[bytes]:
        """Progress, then the answer."""
        async for output in self._outputs(stream):
            if isinstance(output, Progress):
                yield frame({"object": "session.progress", "prompt_progress": progress_body(output)})
            elif isinstance(output, Silence):
                yield KEEPALIVE
            elif isinstance(output, Ended):
                yield frame(await self._body(output))

    def _outputs(self, stream: EventStream) -> AsyncIterator[Any]:
        choices = choices_of([self._generation], self._service.model.tokenizer.pieces, ())
        return outputs(stream, choices, self._service.settings.keepalive_seconds)

    async def _body(self, ended: Ended) -> dict[str, Any]:
        session, tenant = str(self._generation.session_id), self._generation.tenant
        info = await self._service.model.engine.call(Engine.get_session, session, tenant)
        appended = len(self._generation.tokens)
        told = {"appended_tokens": appended, "usage": usage_body([ended]), "timings": timings_body([ended])}
        return session_body(info) | told


def session_body(info: SessionInfo) -> dict[str, Any]:
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


def _answer(info: SessionInfo, status: int = 200) -> JSONResponse:
    return JSONResponse(session_body(info), status, headers=session_headers(info.id))
