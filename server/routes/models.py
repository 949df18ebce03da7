"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter

from server.context import Serving, check_model
from server.service import Service

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def list_models(service: Serving) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [_model(service)]}


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: str, service: Serving) -> dict[str, Any]:
    """How the model is served: its limit and how its memory is read."""
    check_model(service, model_id)
    return _model(service)


def _model(service: Service) -> dict[str, Any]:
    told = service.model.description
    return {
        "id": service.settings.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "cairn",
        "max_model_len": told.max_session_tokens,
        "parameters": told.parameters,
        "dtype": told.dtype,
        "retrieval": {"block_size": told.block_size, **dataclasses.asdict(told.retrieval)},
    }
