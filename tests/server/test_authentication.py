"""With keys set, every route but the probes needs one, and each key has sessions of its own."""

from __future__ import annotations

import httpx
import pytest

FIRST, SECOND = {"Authorization": "Bearer first-key"}, {"Authorization": "Bearer second-key"}
CLOSED = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/v1/sessions"),
    ("GET", "/v1/sessions"),
    ("GET", "/v1/sessions/x"),
    ("DELETE", "/v1/sessions/x"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/nothing"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic first-key"}])
def test_a_route_needs_a_key(guarded: httpx.Client, method: str, path: str, header: dict[str, str]) -> None:
    response = guarded.request(method, path, headers=header)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/health", "/ready", "/version"])
def test_probes_need_none(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize("header", [FIRST, SECOND])
def test_each_key_works(guarded: httpx.Client, header: dict[str, str]) -> None:
    assert guarded.get("/v1/models", headers=header).status_code == 200
    assert guarded.get("/docs", headers=header).status_code == 200


def test_a_session_belongs_to_its_key(guarded: httpx.Client) -> None:
    session = guarded.post("/v1/sessions", headers=FIRST).json()["id"]
    assert guarded.get(f"/v1/sessions/{session}", headers=FIRST).status_code == 200
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/fork")):
        assert guarded.request(method, f"/v1/sessions/{session}{path}", headers=SECOND).status_code == 404
    asked = {"messages": [{"role": "user", "content": "x"}], "session_id": session}
    assert guarded.post("/v1/chat/completions", json=asked, headers=SECOND).status_code == 404
    assert guarded.get("/v1/sessions", headers=SECOND).json()["data"] == []
    assert guarded.delete(f"/v1/sessions/{session}", headers=FIRST).status_code == 200


def test_a_prefix_is_not_shared_between_keys(guarded: httpx.Client) -> None:
    asked = {"prompt": "a prefix that one tenant has sent " * 10, "max_tokens": 1}
    cached = [
        guarded.post("/v1/completions", json=asked, headers=header).json()["usage"]["prompt_tokens_details"]
        for header in (FIRST, SECOND, FIRST)
    ]
    assert [each["cached_tokens"] > 0 for each in cached] == [False, False, True]
