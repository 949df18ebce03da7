"""Bodies that mean harm: what could not be told again, what is hidden deep inside, what is far too long."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.openapi import operations
from server.settings import Settings
from tests.server.test_durability import served

JSON = {"Content-Type": "application/json"}
HALF = '"\\ud800"'
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


@pytest.fixture(scope="module")
def small(tiny_folder: Path) -> Iterator[httpx.Client]:
    with served(tiny_folder, max_session_tokens=500, kv_bytes=8 << 20) as client:
        yield client
        assert client.get("/health").status_code == 200


def refused(response: httpx.Response, param: str | None, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["param"] == param, error
    return error


@pytest.mark.parametrize(
    ("field", "param"),
    [
        (f'"metadata": {{"a": {HALF}}}', "metadata"),
        (f'"metadata": {{{HALF}: "a"}}', "metadata"),
        (f'"tools": [{{"type": "function", "name": "f", "parameters": {{"a": [{HALF}]}}}}]', "tools.0.parameters"),
        ('"tools": [{"type": "function", "name": "f", "parameters": {"a": [NaN]}}]', "tools.0.parameters"),
        ('"tools": [{"type": "function", "name": "f", "parameters": {"a": 1e999}}]', "tools.0.parameters"),
        ('"text": {"format": {"type": "json_schema", "name": "x", "schema": {"a": NaN}}}', "text.format.schema"),
    ],
)
def test_what_no_answer_could_hold_is_no_failure_of_ours(small: httpx.Client, field: str, param: str) -> None:
    """A response tells again what it was asked."""
    for stream in ("false", "true"):
        body = f'{{"input": "x", "max_output_tokens": 1, "stream": {stream}, {field}}}'
        refused(small.post(RESPONSES, content=body, headers=JSON), param)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 50_000, "nested"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"user": "\xff"}', "UTF-8"),
        (b'{"user": ', ""),
    ],
)
def test_what_is_no_json_is_called_so(small: httpx.Client, content: bytes, reason: str) -> None:
    error = refused(small.post(CHAT, content=content, headers=JSON), None)
    assert error["code"] == "invalid_json"
    assert reason in error["message"]


def test_a_text_that_no_session_holds_costs_little(small: httpx.Client) -> None:
    """Made tokens as a whole it would take minutes, and gigabytes."""
    text = "x" * (48 << 20)
    session = small.post("/v1/sessions").json()["id"]
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": text}),
        (CHAT, {"messages": [{"role": "user", "content": text}]}),
        (f"/v1/sessions/{session}/append", {"text": text}),
        ("/tokenize", {"prompt": text}),
    ]
    for path, body in asked:
        begun = time.perf_counter()
        error = refused(small.post(path, json=body), None, status=413)
        assert time.perf_counter() - begun < 20, path
        assert (error["code"], error["limit"]) == ("session_too_long", 500)
        assert 1 << 20 < error["wanted"] < 2 << 20


def test_a_million_prompts_are_refused_before_they_are_read(small: httpx.Client) -> None:
    begun = time.perf_counter()
    refused(small.post("/v1/completions", json={"prompt": ["many words in one prompt"] * 500_000}), "prompt")
    assert time.perf_counter() - begun < 10


def queried() -> list[tuple[str, str]]:
    """Every route but the probes and what has no OpenAPI document."""
    named = [name.split() for name, _ in operations(create_app(Settings()).openapi())]
    return [(method, path) for method, path in named if path not in ("/health", "/ready", "/version", "/metrics")]


@pytest.mark.parametrize(("method", "path"), queried())
def test_an_unknown_query_parameter_is_named(small: httpx.Client, method: str, path: str) -> None:
    if path.startswith("/admin"):
        return
    response = small.request(method, path.format(session_id="x", response_id="x", model_id="x"), params={"colour": "1"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "colour")


def test_the_client_s_lists_are_named_as_it_knows_them(small: httpx.Client) -> None:
    refused(small.get("/v1/responses/x/input_items?include[]=x"), "include")
    refused(small.get("/v1/responses/x?stream=true"), "stream")
    assert small.get("/v1/responses/x?stream=false").status_code == 404


def test_a_wrong_method_is_told_all_the_right_ones(small: httpx.Client) -> None:
    """As the server's own document has them, for every path; TRACE and PUT are nobody's."""
    named = [name.split() for name, _ in operations(create_app(Settings()).openapi())]
    several = 0
    for path in {path for _, path in named if not path.startswith("/admin/")}:  # which only an administrator sees
        asked = re.sub(r"{.*?}", "x", path)
        response = small.put(asked)
        assert response.status_code == 405
        matching = {m.upper() for m, other in named if re.fullmatch(re.sub(r"{.*?}", "[^/]+", other), asked)}
        allowed = set(response.headers["allow"].split(", "))
        assert allowed - {"HEAD"} == matching, path
        several += len(matching) > 1
    assert several > 2
