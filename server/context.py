"""What every route asks of its request: the service, the tenant, the session, and that the model is ours."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from engine import Engine, SessionInfo
from server.asking import Place
from server.chat import Continuation
from server.errors import ApiError
from server.service import Service

SESSION_HEADER = "x-session-id"
MAX_SESSION_ID = 128


def service_of(request: Request) -> Service:
    """The app's one service."""
    return cast(Service, request.app.state.service)


def tenant_of(request: Request) -> str:
    """The hash of the caller's key; empty where no keys are set."""
    return cast(str, getattr(request.state, "tenant", ""))


Serving = Annotated[Service, Depends(service_of)]
Tenant = Annotated[str, Depends(tenant_of)]


def check_model(service: Service, name: str | None) -> None:
    """ApiError if `name` is not the served model; no name means the served one."""
    if name is not None and name != service.settings.model_name:
        message = f"the model {name[:200]!r} does not exist; this server has {service.settings.model_name!r}"
        raise ApiError(404, message, "model", "model_not_found")


def session_id_of(request: Request, in_body: str | None) -> str | None:
    """The session that the body or the header names."""
    in_header = request.headers.get(SESSION_HEADER) or None
    if in_body and in_header and in_body != in_header:
        raise ApiError(400, f"session_id: the body and the header {SESSION_HEADER} name two sessions", "session_id")
    return in_body or in_header


async def place_of(request: Request, service: Service, in_body: str | None) -> Place:
    """Where the request's prompt goes; SessionNotFound if it names a session that is not the caller's."""
    session_id, tenant = session_id_of(request, in_body), tenant_of(request)
    if session_id is None:
        return Place(tenant)
    info: SessionInfo = await service.model.engine.call(Engine.get_session, session_id, tenant)
    return Place(tenant, session_id, info.tokens)


async def continuation_of(service: Service, place: Place) -> Continuation | None:
    """What the session of `place` holds, as the chat template needs to know it."""
    if place.session_id is None:
        return None
    if place.held == 0:
        return Continuation(empty=True)
    tokens = await service.model.engine.call(Engine.session_tokens, place.session_id, place.tenant)
    return Continuation(empty=not tokens, last_token=tokens[-1] if tokens else None, tokens=tokens)
