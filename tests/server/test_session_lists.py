"""Sessions are listed a page at a time, and nobody is missed or told twice."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.test_sessions import create


def listed(client: httpx.Client, **query: Any) -> dict[str, Any]:
    response = client.get("/v1/sessions", params=query)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    assert told["object"] == "list"
    ids = [each["id"] for each in told["data"]]
    assert (told["first_id"], told["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
    return told


def walked(client: httpx.Client, **query: Any) -> list[str]:
    """All ids, page by page."""
    found: list[str] = []
    more = True
    while more:
        told = listed(client, **query, **({"after": found[-1]} if found else {}))
        found += [each["id"] for each in told["data"]]
        more = told["has_more"]
    return found


def test_pages_hold_everything_once_in_both_orders(tiny: httpx.Client) -> None:
    made = [create(tiny) for _ in range(7)]
    assert [each["id"] for each in listed(tiny, limit=7)["data"]] == made[::-1]  # newest first
    for limit in (1, 3, 7, 100):
        assert walked(tiny, limit=limit, order="desc")[:7] == made[::-1]
        assert walked(tiny, limit=limit, order="asc")[-7:] == made
    assert len(set(walked(tiny, limit=3))) == len(walked(tiny, limit=3))


def test_a_page_ends_where_the_list_does(tiny: httpx.Client) -> None:
    last = create(tiny)
    told = listed(tiny, order="asc", after=last)
    assert (told["data"], told["has_more"]) == ([], False)
    assert len(listed(tiny, limit=1)["data"]) == 1
    for _ in range(21):
        create(tiny)
    assert len(listed(tiny)["data"]) == 20
    assert listed(tiny)["has_more"]


@pytest.mark.parametrize(("query", "param"), [
    ({"limit": 0}, "limit"), ({"limit": 101}, "limit"), ({"limit": "many"}, "limit"),
    ({"order": "up"}, "order"), ({"after": "nobody"}, "after"),
])  # fmt: skip
def test_a_wrong_page_is_refused_by_name(tiny: httpx.Client, query: dict[str, Any], param: str) -> None:
    response = tiny.get("/v1/sessions", params=query)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_another_keys_session_is_no_place_to_begin(guarded: httpx.Client) -> None:
    keys = [{"Authorization": f"Bearer {name}-key"} for name in ("first", "second")]
    session = guarded.post("/v1/sessions", headers=keys[0]).json()["id"]
    assert guarded.get("/v1/sessions", params={"after": session}, headers=keys[1]).status_code == 400
    others = guarded.get("/v1/sessions", params={"limit": 100}, headers=keys[1]).json()["data"]
    assert session not in [each["id"] for each in others]
