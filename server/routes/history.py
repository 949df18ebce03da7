"""/v1/sessions/{id}/turns and /rewind: what a session was asked, and taking it back."""

from __future__ import annotations

import functools
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from engine import Engine
from server.conditions import IfMatch
from server.context import Serving, Tenant
from server.reading import answer
from server.schemas import RewindRequest

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["sessions"])


@router.get("/turns")
async def list_turns(session_id: str, service: Serving, tenant: Tenant) -> dict[str, Any]:
    """The requests that changed a session, oldest first."""
    turns = await service.model.engine.call(Engine.session_turns, session_id, tenant)
    data = [
        {"index": turn.index, "start_token": turn.start, "answer_token": turn.answer, "end_token": turn.end}
        for turn in turns
    ]
    return {"object": "list", "data": data}


@router.post("/rewind")
async def rewind(
    session_id: str, body: RewindRequest, service: Serving, tenant: Tenant, if_match: IfMatch
) -> JSONResponse:
    """Forget a turn and all that follows it, or all but the first tokens; forks keep what they have."""
    change = functools.partial(Engine.rewind_session, turn=body.turn, tokens=body.tokens)
    return answer(await service.model.engine.call(if_match.before(change), session_id, tenant))
