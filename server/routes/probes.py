"""GET /health, /ready, /version: need no key and are always answered."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.context import Serving
from server.service import State

router = APIRouter(tags=["probes"])


@router.get("/health")
async def health(service: Serving) -> JSONResponse:
    """Alive: 503 while the model loads, if it could not be loaded, or if the engine has failed."""
    alive = service.state is State.DRAINING or (service.state is State.READY and service.model.engine.alive)
    body = {"status": service.state.value} | ({"error": service.failure} if service.failure else {})
    return JSONResponse(body, 200 if alive else 503)


@router.get("/ready")
async def ready(service: Serving) -> JSONResponse:
    """Takes requests: 503 while loading and while draining."""
    return JSONResponse({"status": service.state.value}, 200 if service.state is State.READY else 503)


@router.get("/version")
async def show_version() -> dict[str, str]:
    """The server's version."""
    return {"version": server_version()}


def server_version() -> str:
    """Of the installed distribution; a bare checkout has none."""
    try:
        return version("cairn-server")
    except PackageNotFoundError:
        return "0+unknown"
