"""Search by attention: a planted fact is found wherever it stands, and the session stays as it is."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.test_history import turns_of
from tests.server.test_provenance import FILLER, same_text
from tests.server.test_sessions import append, chat, create

PLACES = {"Lisbon": "71432", "Oslo": "52819", "Tulsa": "90346", "Varna": "18527", "Quito": "46103"}


@pytest.fixture(scope="module")
def session(cairn: httpx.Client) -> str:
    """Five facts, the first at the very beginning and the last at the very end."""
    session = create(cairn)
    told = [f"The pass key for {place} is {key}. Remember it. " for place, key in PLACES.items()]
    append(cairn, session, (FILLER * 8).join(told))
    return session


def search(client: httpx.Client, session: str, query: str, **more: Any) -> dict[str, Any]:
    response = client.post(f"/v1/sessions/{session}/search", json={"query": query, **more})
    assert response.status_code == 200, response.text
    assert response.headers["x-session-id"] == session
    told: dict[str, Any] = response.json()
    return told


@pytest.mark.parametrize("place", PLACES)
def test_a_fact_is_among_the_first_passages_wherever_it_stands(cairn: httpx.Client, session: str, place: str) -> None:
    told = search(cairn, session, f"What is the pass key for {place}?")
    assert any(PLACES[place] in passage["text"] for passage in told["passages"])
    assert len(told["passages"]) <= 5
    assert [passage["share"] for passage in told["passages"]] == sorted(
        (passage["share"] for passage in told["passages"]), reverse=True
    )
    same_text(cairn, session, told["passages"])


def test_a_search_leaves_the_session_as_it_is(cairn: httpx.Client, session: str) -> None:
    before = cairn.get(f"/v1/sessions/{session}").json(), turns_of(cairn, session)
    told = search(cairn, session, "  the pass key for Oslo ", passages=2, blocks_per_head=16)
    assert (told["object"], told["session_id"], len(told["passages"])) == ("session.search", session, 2)
    held = before[0]["tokens"]
    assert held < told["usage"]["prompt_tokens"] < held + 100
    assert told["usage"]["prompt_tokens_details"]["cached_tokens"] > held - 16
    assert told["usage"]["completion_tokens"] == 0
    assert (cairn.get(f"/v1/sessions/{session}").json(), turns_of(cairn, session)) == before
    fork = str(cairn.post(f"/v1/sessions/{session}/fork").json()["id"])
    assert (
        PLACES["Oslo"]
        in chat(cairn, fork, "What is the pass key for Oslo?", max_tokens=16)["choices"][0]["message"]["content"]
    )


def test_a_model_without_trained_landmarks_tells_passages_too(tiny: httpx.Client) -> None:
    session = create(tiny)
    append(tiny, session, FILLER * 20)
    same_text(tiny, session, search(tiny, session, "日本語 🙂")["passages"])
    assert search(tiny, create(tiny), "nothing")["passages"] == []


@pytest.mark.parametrize(("body", "named"), [
    ({}, "query"),
    ({"query": " \n "}, "query"),
    ({"query": "x" * 8193}, "query"),
    ({"query": 3}, "query"),
    ({"query": "x", "passages": 0}, "passages"),
    ({"query": "x", "passages": 101}, "passages"),
    ({"query": "x", "more": 1}, "more"),
])  # fmt: skip
def test_what_makes_no_sense_is_named(cairn: httpx.Client, session: str, body: dict[str, Any], named: str) -> None:
    refused = cairn.post(f"/v1/sessions/{session}/search", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, named)
    assert cairn.post("/v1/sessions/unknown/search", json={"query": "x"}).status_code == 404
