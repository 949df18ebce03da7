"""The app: routes, middleware and the service, wired together. Knows how nothing works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware

from server import errors
from server.context import SESSION_HEADER
from server.door import Door
from server.middleware import Authentication, BodyLimit, Failures, Gate, Queue, RateLimit
from server.openapi import Api
from server.queries import refuse_unknown
from server.routes import (
    admin,
    chat,
    completions,
    documents,
    history,
    metrics,
    models,
    probes,
    responses,
    search,
    sessions,
    tokenize,
    transfer,
)
from server.routes.probes import server_version
from server.service import Service
from server.settings import Settings

DESCRIPTION = "OpenAI's API over a KV cache that is a searchable memory, with sessions and provenance."

TOLD_TO_PAGES = (
    SESSION_HEADER,
    "retry-after",
    "etag",
    *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
)


def create_app(settings: Settings, service: Service | None = None) -> FastAPI:
    """An app that begins to load the model when it starts."""
    service = service or Service(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    described = "/openapi.json" if settings.docs_page else None  # without it, there are no pages either
    app = Api(
        title="Cairn",
        version=server_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=described,
        dependencies=[Depends(refuse_unknown)],
    )
    app.state.service = service
    sessional = (sessions, documents, history, search, transfer)
    for route in (chat, completions, responses, models, tokenize, *sessional, probes, metrics, admin):
        app.include_router(route.router)
    errors.install(app)
    # The last one added is the first to see a request.
    app.add_middleware(Failures, service=service)
    app.add_middleware(BodyLimit, service=service, larger={transfer.IMPORT: settings.max_import_bytes})
    app.add_middleware(Queue, service=service)
    app.add_middleware(RateLimit, service=service)
    app.add_middleware(Gate, service=service)
    app.add_middleware(Authentication, service=service)
    app.add_middleware(Door, service=service)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=("GET", "POST", "PATCH", "DELETE"),
            allow_headers=("*",),
            expose_headers=TOLD_TO_PAGES,
        )
    return app
