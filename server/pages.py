"""Lists a page at a time, as OpenAI's: `limit`, `after` an id, `order`, whether there are more. Knows no resource."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Query

from server.errors import ApiError

Json = dict[str, Any]
Limit = Annotated[int, Query(ge=1, le=100)]


def page(oldest_first: Sequence[Json], limit: int, after: str | None, order: Literal["asc", "desc"]) -> Json:
    """The page of those after the one whose id is `after`; ApiError if there is none."""
    ordered = list(oldest_first) if order == "asc" else list(reversed(oldest_first))
    start = 0 if after is None else _place(ordered, after) + 1
    data = ordered[start : start + limit]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    more = start + limit < len(ordered)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}


def _place(ordered: Sequence[Json], wanted: str) -> int:
    for place, each in enumerate(ordered):
        if each["id"] == wanted:
            return place
    message = f"after: nothing has the id {wanted[:200]!r}; begin anew without it"
    raise ApiError(400, message, "after", "invalid_value")
