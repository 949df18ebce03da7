"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.asking import ask, refuse_combinations
from server.context import Serving, check_model, place_of
from server.responding import respond
from server.schemas import CompletionRequest
from server.service import Model
from server.shapes import CompletionShape
from server.tools import Wanted

router = APIRouter(tags=["completions"])

DEFAULT_TOKENS = 16  # OpenAI's and vLLM's


@router.post("/v1/completions")
async def create_completion(body: CompletionRequest, request: Request, service: Serving) -> Response:
    """Continue a text, or each of several."""
    check_model(service, body.model)
    place = await place_of(request, service, body.session_id)
    model, settings = service.model, service.settings
    refuse_combinations(body, len(body.prompt), place, settings.max_choices)  # before a million prompts become tokens
    prompts = await asyncio.to_thread(_tokens, model, body.prompt, place.held == 0)
    wanted = Wanted(response_format=body.response_format, structured=body.structured_outputs)
    form = await asyncio.to_thread(model.forms.of, wanted)
    asked = ask(
        body,
        prompts,
        place,
        default_tokens=DEFAULT_TOKENS,
        room=model.description.max_session_tokens,
        max_choices=settings.max_choices,
        form=form,
    )
    echoes = await asyncio.to_thread(_echoes, model, body) if body.echo else []
    return await respond(request, service, asked, CompletionShape(settings.model_name, echoes=echoes))


def _tokens(model: Model, prompts: Sequence[str | list[int]], begin: bool) -> list[list[int]]:
    tokenizer = model.tokenizer
    return [tokenizer.encode(each, begin=begin) if isinstance(each, str) else each for each in prompts]


def _echoes(model: Model, body: CompletionRequest) -> list[str]:
    """The prompts as text, once for each of their answers."""
    texts = [each if isinstance(each, str) else model.tokenizer.pieces.text(each) for each in body.prompt]
    return [text for text in texts for _ in range(body.choices)]
