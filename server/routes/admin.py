"""/admin: who uses the server, reading the keys again, draining. `server.middleware` lets only admin keys in."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from fastapi import APIRouter

from engine import Engine
from server.context import Serving
from server.errors import ApiError
from server.keys import KeysError
from server.service import Service

router = APIRouter(prefix="/admin", tags=["admin"])


@router.get("/tenants")
async def list_tenants(service: Serving) -> dict[str, Any]:
    """All tenants with their keys, limits and use."""
    owners = service.tenants.owners()
    return {"object": "list", "data": [await _tenant(service, name, owner) for name, owner in owners.items()]}


@router.post("/keys/reload")
async def reload_keys(service: Serving) -> dict[str, Any]:
    """Read the keys file now; if it is wrong, the keys stay as they were."""
    try:
        await asyncio.to_thread(service.tenants.reload)
    except KeysError as error:
        raise ApiError(400, str(error), code="invalid_keys_file") from error
    return {"object": "keys", "keys": len(service.tenants.file.keys), "tenants": len(service.tenants.owners())}


@router.post("/drain")
async def drain(service: Serving) -> dict[str, Any]:
    """Take no new requests; what runs goes on, and the process stays until it gets a signal."""
    service.drain()
    return {"status": service.state.value, "running": service.running - 1}  # without this one


async def _tenant(service: Service, name: str, owner: str) -> dict[str, Any]:
    sessions = await service.model.engine.call(Engine.list_sessions, owner)
    file, limits = service.tenants.file, service.tenants.limits_of(owner)
    keys = [key for key in file.keys if key.tenant == name]
    return {
        "object": "tenant",
        "name": name,
        "keys": [{"id": key.id, "expires": key.expires and int(key.expires.timestamp())} for key in keys],
        "limits": limits.model_dump(),
        "sessions": len(sessions),
        "session_tokens": sum(session.tokens for session in sessions),
        "usage": dataclasses.asdict(service.tenants.accounts.of(owner).totals()),
    }
