"""/v1/responses: create, get, delete, list the input. A response belongs to the key that made it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.asking import Asked, ask
from server.context import Serving, Tenant, check_model, continuation_of, place_of
from server.errors import ApiError
from server.pages import Limit, page
from server.responding import Answer, session_headers, while_connected
from server.responses.answer import ResponseAnswer, ResponseEvents
from server.responses.ground import Ground, forget, grounded, history
from server.responses.schemas import ResponseRequest
from server.responses.shapes import ResponseShape
from server.responses.store import Stored
from server.service import Service
from server.shapes import ChatShape
from server.tools import Form

router = APIRouter(prefix="/v1/responses", tags=["responses"])

NAMES = (
    ("response_format.json_schema.schema", "text.format.schema"),
    ("response_format", "text.format"),
    (".function.parameters", ".parameters"),
)
No = Literal["false"] | None
"""A query parameter of OpenAI's that may be given, and asks for nothing."""


@router.post("")
async def create_response(body: ResponseRequest, request: Request, service: Serving) -> Response:
    """Answer the input, after what `previous_response_id` or `session_id` holds."""
    check_model(service, body.model)
    place = await place_of(request, service, body.session_id)
    form = await asyncio.to_thread(_form, service, body)
    async with AsyncExitStack() as held:
        ground = await held.enter_async_context(grounded(service.model, body, place))
        asked = await _asked(service, body, ground, form)
        shape = ResponseShape(service.settings.model_name, body, asked.session_id)
        answer = ResponseAnswer(Answer(service, asked, ChatShape(service.settings.model_name)), ground, shape)
        headers = session_headers(asked.session_id)
        if not asked.stream:
            return JSONResponse(await while_connected(request, answer.whole()), headers=headers)
        stream = await held.enter_async_context(answer.open())  # refusals come before the first byte
        return ResponseEvents(answer.events(stream), held.pop_all(), headers)


def _form(service: Service, body: ResponseRequest) -> Form:
    """What the answer is held to; what cannot be held is named as it is called here."""
    try:
        return service.model.forms.of(body.wanted)
    except ApiError as error:
        message, param = (_named_here(text) for text in (str(error), error.param or ""))
        raise ApiError(error.status, message, param or None, error.code) from error


def _named_here(text: str) -> str:
    for chat_s, ours in NAMES:
        text = text.replace(chat_s, ours)
    return text


async def _asked(service: Service, body: ResponseRequest, ground: Ground, form: Form) -> Asked:
    model, settings = service.model, service.settings
    after = await continuation_of(service, ground.place)
    tokens = await asyncio.to_thread(model.conversations.tokens, ground.messages, after, form.told)
    return ask(
        body,
        [tokens],
        ground.place,
        default_tokens=settings.default_max_tokens,
        room=model.description.max_session_tokens,
        max_choices=settings.max_choices,
        stops=model.conversations.stops,
        form=form,
    )


@router.get("/{response_id}")
async def get_response(
    response_id: str, service: Serving, tenant: Tenant, stream: No = None, include_obfuscation: No = None
) -> dict[str, Any]:
    """One response, told as it is and not in a stream."""
    return _told(await _stored(service, response_id, tenant))


@router.delete("/{response_id}")
async def delete_response(response_id: str, service: Serving, tenant: Tenant) -> dict[str, Any]:
    """Forget a response, and its session with it unless another response is in it."""
    gone = await asyncio.to_thread(service.model.responses.delete, response_id, tenant)
    if gone is None:
        raise _not_found(response_id)
    for session in gone:
        await forget(service.model, session, tenant)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/{response_id}/cancel")
async def cancel_response(response_id: str, service: Serving, tenant: Tenant) -> dict[str, Any]:
    """Only a response in the background could be cancelled, and there is none: closing the connection cancels."""
    await _stored(service, response_id, tenant)
    raise ApiError(400, "response_id: only responses in the background can be cancelled", "response_id")


@router.get("/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    service: Serving,
    tenant: Tenant,
    limit: Limit = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> dict[str, Any]:
    """What the response was made from: the conversation before it, and its own input."""
    last = await _stored(service, response_id, tenant)
    past = await asyncio.to_thread(history, service.model, last)
    return page(past[: -len(last.body["output"])], limit, after, order)


async def _stored(service: Service, response_id: str, tenant: str) -> Stored:
    found = await asyncio.to_thread(service.model.responses.get, response_id, tenant)
    if found is None:
        raise _not_found(response_id)
    return found


def _told(response: Stored) -> dict[str, Any]:
    """The body, with the session that holds its conversation by now."""
    return {**response.body, "session_id": response.session}


def _not_found(response_id: str) -> ApiError:
    return ApiError(404, f"there is no response {response_id[:128]!r}", "response_id", "response_not_found")
