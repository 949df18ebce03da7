"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.context import Serving, check_model
from server.errors import ApiError
from server.schemas import DetokenizeRequest, TokenizeRequest
from server.service import Model

router = APIRouter(tags=["tokens"])


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, service: Serving) -> JSONResponse:
    """The tokens of a text, or of a conversation with the beginning of its answer."""
    check_model(service, body.model)
    model = service.model
    tokens = await asyncio.to_thread(_tokens, model, body)
    answer: dict[str, Any] = {
        "count": len(tokens),
        "max_model_len": model.description.max_session_tokens,
        "tokens": tokens,
    }
    if body.return_token_strs:
        spelled = [model.tokenizer.pieces.spelled(token) for token in tokens]
        answer["token_strs"] = [piece.decode("utf-8", "replace") for piece in spelled]
    return JSONResponse(answer)  # FastAPI would look at each of a million tokens


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, service: Serving) -> dict[str, str]:
    """The text of tokens, control tokens spelled out."""
    check_model(service, body.model)
    vocabulary = service.model.description.vocab_size
    if any(token >= vocabulary for token in body.tokens):
        raise ApiError(400, f"tokens: every token must be below {vocabulary}", "tokens", "invalid_value")
    return {"prompt": await asyncio.to_thread(service.model.tokenizer.pieces.text, body.tokens)}


def _tokens(model: Model, body: TokenizeRequest) -> list[int]:
    if body.messages is not None:
        tools = [tool.told() for tool in body.tools or ()]
        return model.conversations.tokens([message.rendered() for message in body.messages], tools=tools)
    return model.tokenizer.encode(body.prompt or "", begin=body.add_special_tokens)
