"""POST /v1/sessions/{id}/documents: a file's text is read into a session, as if it had been appended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from engine import Engine
from server.conditions import IfMatch
from server.context import Serving, Tenant
from server.documents.base import Extracted, Unreadable
from server.documents.extraction import Extractor
from server.documents.kinds import charset_of, kind_of
from server.errors import ApiError
from server.library import MAX_NAME, Shelved, digest_of
from server.reading import Reading, reading_of
from server.responding import while_connected
from server.service import Service
from server.settings import sized

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])
STATUS = {"document_too_large": 413, "unsupported_media_type": 415}
"""422 for all other reasons: the request is right, the file is not."""
YES, NO = ("true", "1"), ("false", "0", "")
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}, "stream": {"type": "boolean"}},
                }
            }
        },
    }
}


@dataclass(frozen=True)
class Sent:
    """What a form holds."""

    name: str
    content_type: str
    data: bytes
    stream: bool


@router.post("/{session_id}/documents", openapi_extra=FORM)
async def add_document(
    session_id: str, request: Request, service: Serving, tenant: Tenant, if_match: IfMatch
) -> Response:
    """Read a file into the session without answering; its text is taken literally."""
    engine, tokenizer = service.model.engine, service.model.tokenizer
    await engine.call(if_match.before(Engine.get_session), session_id, tenant)  # before the work, not only after it
    sent = await _sent(request, service.documents.limits.file_bytes)
    kind, extracted = await while_connected(request, _extracted(service.documents, sent))
    info = await engine.call(Engine.get_session, session_id, tenant)
    tokens = await asyncio.to_thread(tokenizer.encode, extracted.text, begin=info.tokens == 0)

    async def told(start: int, end: int) -> dict[str, Any]:
        await _remember(service, tenant, session_id, Shelved(start, end, sent.name, extracted.pages, digest_of(tokens)))
        return {"document": _document_body(sent.name, kind, extracted, start, end)}

    reading = Reading(service, reading_of(tokens, session_id, tenant), if_match, told)
    return await reading.respond(request, stream=sent.stream)


async def _sent(request: Request, most: int) -> Sent:
    """The form, checked."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(415, "file: send multipart/form-data with a part `file`", "file", "unsupported_media_type")
    async with request.form(max_files=1, max_fields=1, max_part_size=1024) as form:
        for name in form:
            if name not in ("file", "stream"):
                raise ApiError(400, f"{name[:100]}: there is no such field", name[:100], "unsupported_parameter")
        file, stream = form.get("file"), form.get("stream", "")
        if not isinstance(file, UploadFile):
            raise ApiError(400, "file: give a file, with a file name", "file", "invalid_value")
        if file.size is not None and file.size > most:
            has = f"it has {file.size:,} bytes, and the limit is {sized(most)}"
            message = f"file: {has}; split it, or send its text alone"
            raise ApiError(413, message, "file", "document_too_large")
        name = (file.filename or "").encode(errors="replace").decode()[:MAX_NAME]
        return Sent(name, file.content_type or "", await file.read(), _flag(stream))


def _flag(value: Any) -> bool:
    if not isinstance(value, str) or value.lower() not in YES + NO:
        raise ApiError(400, "stream: give true or false", "stream", "invalid_value")
    return value.lower() in YES


async def _extracted(extractor: Extractor, sent: Sent) -> tuple[str, Extracted]:
    try:
        kind = kind_of(sent.content_type, sent.name, sent.data)
        return kind, await extractor.extract(sent.data, kind, charset_of(sent.content_type))
    except Unreadable as error:
        raise ApiError(STATUS.get(error.code, 422), f"file: {error}", "file", error.code) from error


async def living(service: Service, tenant: str) -> list[str]:
    """The ids of a tenant's sessions."""
    return [info.id for info in await service.model.engine.call(Engine.list_sessions, tenant)]


async def _remember(service: Service, tenant: str, session_id: str, document: Shelved) -> None:
    await asyncio.to_thread(service.model.library.add, tenant, session_id, [document], await living(service, tenant))


def _document_body(name: str, kind: str, extracted: Extracted, start: int, end: int) -> dict[str, Any]:
    return {
        "name": name,
        "media_type": kind,
        "encoding": extracted.encoding,
        "characters": len(extracted.text),
        "pages": extracted.pages,
        "start_token": start,
        "end_token": end,
    }
