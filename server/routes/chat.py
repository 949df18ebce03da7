"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine import Engine
from server.asking import Place, ask
from server.chat import Continuation
from server.context import Serving, check_model, place_of
from server.responding import respond
from server.schemas import ChatRequest
from server.service import Service
from server.shapes import ChatShape
from server.structured import constraint_of

router = APIRouter(tags=["completions"])


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, request: Request, service: Serving) -> Response:
    """Answer a conversation; in a session, `messages` are what is new."""
    check_model(service, body.model)
    place = await place_of(request, service, body.session_id)
    model, settings = service.model, service.settings
    messages = [message.rendered() for message in body.messages]
    tokens = await asyncio.to_thread(model.conversations.tokens, messages, await _continuation(service, place))
    constraint = await asyncio.to_thread(constraint_of, model.grammars, body.response_format, body.structured_outputs)
    asked = ask(
        body,
        [tokens],
        place,
        default_tokens=settings.default_max_tokens,
        room=model.description.max_session_tokens,
        max_choices=settings.max_choices,
        constraint=constraint,
        stops=model.conversations.stops,
    )
    return await respond(request, service, asked, ChatShape(settings.model_name))


async def _continuation(service: Service, place: Place) -> Continuation | None:
    if place.session_id is None:
        return None
    if place.held == 0:
        return Continuation(empty=True)
    tokens = await service.model.engine.call(Engine.session_tokens, place.session_id, place.tenant)
    return Continuation(empty=not tokens, last_token=tokens[-1] if tokens else None)
