"""POST /v1/sessions/{id}/search: what the model's heads look up in a session when they read a query."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from engine import Engine, Generation, RetrievalParams, SamplingParams, Search
from server.answers import choices_of, outputs
from server.choices import Ended
from server.context import Serving, Tenant
from server.provenance import retrieval_body
from server.responding import session_headers, while_connected
from server.schemas import SearchRequest
from server.service import Model, Service
from server.shapes import timings_body, usage_body

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["sessions"])


@router.post("/search")
async def search(
    session_id: str, body: SearchRequest, request: Request, service: Serving, tenant: Tenant
) -> JSONResponse:
    """Read a query over a copy of the session and tell which passages it looks up; the session does not change."""
    held = await service.model.engine.call(Engine.session_tokens, session_id, tenant)
    tokens, looking = await asyncio.to_thread(query_of, service.model, body.query)
    retrieval = RetrievalParams(passages=body.passages, blocks_per_head=body.blocks_per_head)
    generation = Generation(
        uuid.uuid4().hex, tuple(tokens), SamplingParams(max_tokens=0), retrieval, session_id, tenant, search=looking
    )
    ended = await while_connected(request, found(service, generation))
    assert ended.finished.retrieval is not None
    documents = await asyncio.to_thread(service.model.library.of, tenant, session_id)
    pieces = service.model.tokenizer.pieces
    told = await asyncio.to_thread(retrieval_body, ended.finished.retrieval, held, pieces, documents)
    answer: dict[str, Any] = {"object": "session.search", "session_id": session_id, "passages": told["passages"]}
    answer |= {"usage": usage_body([ended]), "timings": timings_body([ended])}
    return JSONResponse(answer, headers=session_headers(session_id))


async def found(service: Service, generation: Generation) -> Ended:
    """The end of a search."""
    choices = choices_of([generation], service.model.tokenizer.pieces, ())
    async with service.model.engine.open([generation]) as stream:
        async for output in outputs(stream, choices):
            if isinstance(output, Ended):
                return output
    raise AssertionError("a generation ends in Finished or in an error")


def query_of(model: Model, query: str) -> tuple[list[int], Search]:
    """A query's tokens, and which of them look: plain text that goes on, which measured better than a message."""
    tokens = model.tokenizer.encode(" " + query)
    return tokens, Search(0, len(tokens))
