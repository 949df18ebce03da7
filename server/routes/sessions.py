"""/v1/sessions: create, list, get, change, read the text, append, fork, delete. One belongs to its creator's key."""

from __future__ import annotations

import asyncio
import functools
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from engine import Engine, SessionInfo
from server.conditions import IfMatch, unless_known
from server.context import Serving, Tenant
from server.errors import ApiError
from server.idempotency import IdempotencyKey, fingerprint
from server.pages import Limit, page
from server.provenance import excerpts
from server.reading import Reading, answer, reading_of, session_body
from server.responding import session_headers
from server.schemas import MAX_TOKENS, AppendRequest, SessionRequest, Wire

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

Edge = Annotated[int | None, Query(ge=0, le=MAX_TOKENS)]


@router.post("", status_code=201)
async def create_session(
    service: Serving, tenant: Tenant, key: IdempotencyKey = None, body: SessionRequest | None = None
) -> JSONResponse:
    """A new, empty session."""
    asked = body or SessionRequest()
    create = functools.partial(Engine.create_session, pinned=bool(asked.pinned), ttl=asked.ttl_seconds)

    async def created() -> JSONResponse:
        return answer(await service.model.engine.call(create, tenant), 201)

    return await service.model.idempotency.once(tenant, key, fingerprint("create", asked.model_dump_json()), created)


@router.get("")
async def list_sessions(
    service: Serving,
    tenant: Tenant,
    limit: Limit = 20,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """The caller's sessions, a page at a time; by the time of their making, newest first."""
    infos = await service.model.engine.call(Engine.list_sessions, tenant)
    return page([session_body(info) for info in infos], limit, after, order)


@router.get("/{session_id}")
async def get_session(session_id: str, request: Request, service: Serving, tenant: Tenant) -> Response:
    """One session."""
    info = await service.model.engine.call(Engine.get_session, session_id, tenant)
    return unless_known(request, info, answer(info))


@router.patch("/{session_id}")
async def change_session(
    session_id: str, body: SessionRequest, service: Serving, tenant: Tenant, if_match: IfMatch
) -> JSONResponse:
    """Pin a session, or set how long it is kept without use."""
    change = functools.partial(Engine.change_session, pinned=body.pinned, ttl=body.ttl_seconds)
    return answer(await service.model.engine.call(if_match.before(change), session_id, tenant))


@router.get("/{session_id}/text")
async def get_text(
    session_id: str,
    request: Request,
    service: Serving,
    tenant: Tenant,
    start_token: Edge = None,
    end_token: Edge = None,
) -> Response:
    """What a session holds, as text: all of it, or some tokens."""
    info, tokens = await service.model.engine.call(_state, session_id, tenant)
    start, end = start_token or 0, len(tokens) if end_token is None else end_token
    if end > len(tokens):
        raise ApiError(400, f"end_token: the session has {len(tokens)} tokens", "end_token", "invalid_value")
    if start > end:
        raise ApiError(400, f"start_token: must not pass the end, {end}", "start_token", "invalid_value")
    pieces = service.model.tokenizer.pieces
    [told] = await asyncio.to_thread(excerpts, tokens, [(start, end)], pieces)
    body = {"id": session_id, "object": "session.text", **told}
    return unless_known(request, info, JSONResponse(body, headers=session_headers(session_id)))


@router.post("/{session_id}/fork", status_code=201)
async def fork_session(
    session_id: str, service: Serving, tenant: Tenant, key: IdempotencyKey = None, body: Wire | None = None
) -> JSONResponse:
    """A new session with the same past, which is shared and not copied."""

    async def forked() -> JSONResponse:
        info = await service.model.engine.call(Engine.fork_session, session_id, tenant)
        await asyncio.to_thread(service.model.library.fork, tenant, session_id, info.id)
        return answer(info, 201)

    return await service.model.idempotency.once(tenant, key, fingerprint("fork", session_id), forked)


@router.delete("/{session_id}")
async def delete_session(session_id: str, service: Serving, tenant: Tenant, if_match: IfMatch) -> dict[str, Any]:
    """Forget a session."""
    await service.model.engine.call(if_match.before(Engine.delete_session), session_id, tenant)
    return {"id": session_id, "object": "session.deleted", "deleted": True}


@router.post("/{session_id}/append")
async def append(
    session_id: str, body: AppendRequest, request: Request, service: Serving, tenant: Tenant, if_match: IfMatch
) -> Response:
    """Read a text into the session without answering; the text is taken literally."""
    info = await service.model.engine.call(Engine.get_session, session_id, tenant)
    tokens = await asyncio.to_thread(service.model.tokenizer.encode, body.text, begin=info.tokens == 0)
    reading = Reading(service, reading_of(tokens, session_id, tenant), if_match)
    return await reading.respond(request, stream=bool(body.stream))


def _state(engine: Engine, session_id: str, tenant: str) -> tuple[SessionInfo, list[int]]:
    with engine.holding(session_id, tenant) as info:
        return info, engine.session_tokens(session_id, tenant)
