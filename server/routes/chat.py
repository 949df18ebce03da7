"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.asking import ask
from server.context import Serving, check_model, continuation_of, place_of
from server.responding import respond
from server.schemas import ChatRequest
from server.shapes import ChatShape
from server.tools import Wanted

router = APIRouter(tags=["completions"])


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, request: Request, service: Serving) -> Response:
    """Answer a conversation; in a session, `messages` are what is new."""
    check_model(service, body.model)
    place = await place_of(request, service, body.session_id)
    model, settings = service.model, service.settings
    form = await asyncio.to_thread(model.forms.of, _wanted(body))
    messages = [message.rendered() for message in body.messages]
    after = await continuation_of(service, place)
    tokens = await asyncio.to_thread(model.conversations.tokens, messages, after, form.told)
    asked = ask(
        body,
        [tokens],
        place,
        default_tokens=settings.default_max_tokens,
        room=model.description.max_session_tokens,
        max_choices=settings.max_choices,
        stops=model.conversations.stops,
        form=form,
    )
    return await respond(request, service, asked, ChatShape(settings.model_name))


def _wanted(body: ChatRequest) -> Wanted:
    return Wanted(
        tuple(body.tools or ()),
        body.tool_choice,
        body.parallel_tool_calls is not False,
        body.response_format,
        body.structured_outputs,
    )
