"""The app: routes, middleware and the service, wired together. Knows how nothing works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from server import errors
from server.middleware import Authentication, BodyLimit, Gate
from server.routes import (
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


def create_app(settings: Settings, service: Service | None = None) -> FastAPI:
    """An app that begins to load the model when it starts."""
    service = service or Service(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(title="Cairn", version=server_version(), description=DESCRIPTION, lifespan=lifespan)
    app.state.service = service
    sessional = (sessions, documents, history, search, transfer)
    for route in (chat, completions, responses, models, tokenize, *sessional, probes, metrics):
        app.include_router(route.router)
    errors.install(app)
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, larger={transfer.IMPORT: settings.max_import_bytes})
    app.add_middleware(Gate, service=service)
    app.add_middleware(Authentication, keys=settings.api_keys)
    return app
