"""GET /metrics, for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.context import Serving

router = APIRouter(tags=["probes"])


@router.get("/metrics")
async def metrics(service: Serving) -> Response:
    """What has been counted, in Prometheus' text format."""
    page = await asyncio.to_thread(service.metrics.page)
    return Response(page, headers={"Content-Type": CONTENT_TYPE_LATEST})
