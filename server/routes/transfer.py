"""/v1/sessions/{id}/export and /v1/sessions/import: a session as one file.

Neither holds a file in memory: one is written while it is read, the other is read from where it was put. What is in a
file, and whether it can be used, is the engine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from engine import Engine, Export, Told
from server.context import Serving, Tenant
from server.errors import ApiError
from server.idempotency import IdempotencyKey, fingerprint
from server.reading import answer
from server.responding import session_headers
from server.routes.documents import living
from server.service import Service

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

IMPORT = "/v1/sessions/import"
MEDIA_TYPE = "application/vnd.cairn.session"
PIECE = 1 << 20
"""Bytes that are read or written at once."""

Kv = Annotated[bool, Query(description="with keys and values; else the text alone")]


@router.get("/{session_id}/export")
async def export_session(session_id: str, service: Serving, tenant: Tenant, kv: Kv = True) -> Response:
    """The whole session as a file; the session can go on while it is sent."""
    with ExitStack() as held:
        held.enter_context(transferring(service))
        notes = await asyncio.to_thread(service.model.library.notes, tenant, session_id)
        told = await asyncio.to_thread(told_by, service, notes)
        export = partial(Engine.export_session, told=told, kv=kv)
        file = await service.model.engine.call(export, session_id, tenant)
        return Download(file, session_id, held.pop_all())


@router.post("/import", status_code=201)
async def import_session(
    request: Request, service: Serving, tenant: Tenant, key: IdempotencyKey = None, kv: Kv = True
) -> JSONResponse:
    """A new session that a file holds."""
    with transferring(service), tempfile.NamedTemporaryFile(dir=service.incoming, suffix=".cairn") as file:
        digest = await receive_file(request, file)
        told = await asyncio.to_thread(told_by, service)
        take = partial(Engine.import_session, path=Path(file.name), tenant=tenant, told=told, kv=kv)

        async def taken() -> JSONResponse:
            info, restored, notes = await service.model.engine.work(take)
            await asyncio.to_thread(service.model.library.take, tenant, info.id, notes, await living(service, tenant))
            return answer(info, 201, restored_tokens=restored)

        return await service.model.idempotency.once(tenant, key, fingerprint("import", str(kv), digest), taken)


async def receive_file(request: Request, file: IO[bytes]) -> bytes:
    """Put the body into a file; a hash of it."""
    piece, digest = bytearray(), hashlib.sha256()
    try:
        async for data in request.stream():
            piece += data
            if len(piece) >= PIECE:
                await asyncio.to_thread(_put, file, bytes(piece), digest)
                piece.clear()
        await asyncio.to_thread(_put, file, bytes(piece), digest)
    except OSError as error:
        raise ApiError(503, f"the file cannot be put anywhere: {error.strerror}", code="no_room_for_file") from error
    return digest.digest()


def _put(file: IO[bytes], piece: bytes, digest: hashlib._Hash) -> None:
    file.write(piece)
    file.flush()
    digest.update(piece)


def told_by(service: Service, notes: bytes = b"") -> Told:
    """What files tell of the served model."""
    return Told(service.model.tokenizer.vocabulary, service.settings.model_name, notes)


@contextlib.contextmanager
def transferring(service: Service) -> Iterator[None]:
    """One of the files that are on their way; ApiError if there are too many."""
    most = service.settings.max_transfers
    if service.transfers >= most:
        raise ApiError(429, f"{most} session files are being sent already; try again later", code="too_many_transfers")
    service.transfers += 1
    try:
        yield
    finally:
        service.transfers -= 1


class Download(StreamingResponse):
    """A file that is sent while it is read; whatever happens, the engine gets its blocks back."""

    media_type = MEDIA_TYPE

    def __init__(self, file: Export, session_id: str, held: ExitStack) -> None:
        self._file, self._held = file, held
        name = {"Content-Disposition": f'attachment; filename="{session_id}.cairn"'}
        super().__init__(
            self._pieces(), headers={"Content-Length": str(file.size), **name, **session_headers(session_id)}
        )

    async def _pieces(self) -> AsyncIterator[bytes]:
        while piece := await asyncio.to_thread(self._file.read, PIECE):
            yield piece

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._held.close()
            await asyncio.shield(asyncio.to_thread(self._file.close))
