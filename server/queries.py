"""Query parameters that no route has are refused by name, as unknown fields of a body are. Knows no route."""

from __future__ import annotations

from fastapi import Request
from fastapi.routing import APIRoute

from server.errors import ApiError
from server.middleware import METRICS, PROBES


async def refuse_unknown(request: Request) -> None:
    """ApiError for a parameter that would be ignored; probes take any, as they are asked by machines of all kinds."""
    route = request.scope.get("route")
    if not request.query_params or not isinstance(route, APIRoute) or route.path in (*PROBES, METRICS):
        return
    known = {each.alias for each in route.dependant.query_params}
    for name in request.query_params:
        if name not in known:
            shown = name[:100].removesuffix("[]")  # how the official client spells a list
            message = f"{shown}: this route has no such query parameter"
            raise ApiError(400, message, shown, "unsupported_parameter")
