"""Random JSON, and what only looks like it, as bodies: each answer is good or an error body, and never a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from server.app import create_app
from server.openapi import operations
from server.settings import Settings
from tests.server.test_durability import served

JSON = {"Content-Type": "application/json"}
FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module")
def small(tiny_folder: Path) -> Iterator[httpx.Client]:
    with served(tiny_folder, max_session_tokens=100, kv_bytes=8 << 20, max_body_bytes=1 << 20) as client:
        yield client
        assert client.get("/health").status_code == 200


def paths() -> list[str]:
    """Every route that takes a body of JSON."""
    named = dict(operations(create_app(Settings()).openapi()))
    takes = [
        name for name, each in named.items() if "application/json" in each.get("requestBody", {}).get("content", {})
    ]
    return [name.split()[1].format(session_id="x") for name in takes if name.startswith("post ")]


def fields() -> list[str]:
    """Every field of every body, so that random values meet real names."""
    schemas = create_app(Settings()).openapi()["components"]["schemas"].values()
    return sorted({name for schema in schemas for name in schema.get("properties", {})})


def check(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")
        return
    body = response.json()
    assert isinstance(body, dict)
    if response.status_code >= 400:
        assert body["error"].keys() >= {"message", "type", "param", "code"}
        assert body["error"]["message"]


LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["user", "tool", "text", "\ud800", "\0", "auto", "json_object"]),
)
VALUE = st.recursive(
    LEAF,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(fields()), inner, max_size=4)),
    max_leaves=12,
)
BODY = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": VALUE}), max_size=2) | VALUE,
        "prompt": VALUE,
        "text": VALUE,
        "max_tokens": st.just(2),
    },
)


@FEW
@given(path=st.sampled_from(paths()), body=BODY, more=st.dictionaries(st.sampled_from(fields()), VALUE, max_size=3))
def test_random_values_under_real_names(small: httpx.Client, path: str, body: Any, more: Any) -> None:
    check(small.post(path, content=json.dumps({**body, **more}).encode(), headers=JSON))


DEEP = [opening * 50_000 + closing for opening, closing in (("[", ""), ('{"a":', "1"), ('{"messages":[', ""))]
STRANGE = [
    *DEEP,
    "[" * 900 + "]" * 900,
    '{"messages": ' + "[" * 900 + "]" * 900 + "}",
    '{"metadata": ' + '{"a":' * 900 + "1" + "}" * 900 + "}",
    '{"prompt": "x", "max_tokens": 1e400}',
    '{"prompt": "x", "max_tokens": 1' + "0" * 5000 + "}",
    '{"prompt": "x", "temperature": -Infinity}',
    '{"prompt": "x", "prompt": [[]], "max_tokens": 1, "max_tokens": 2}',
    '{"prompt": "\\u0000", "max_tokens": 1}',
    '{"prompt": "x"} {"prompt": "y"}',
    "\ufeff{}",
    "",
]


@pytest.mark.parametrize("path", paths())
def test_what_json_should_not_be(small: httpx.Client, path: str) -> None:
    for text in STRANGE:
        check(small.post(path, content=text.encode(), headers=JSON))
    for broken in (b'{"prompt": "\xff"}', b"\xed\xa0\x80", '{"prompt": "x"}'.encode("utf-16"), b'{"prompt": "x'):
        check(small.post(path, content=broken, headers=JSON))


@FEW
@given(
    path=st.sampled_from(paths()), content=st.binary(max_size=100), kind=st.sampled_from([*JSON.values(), "text/x", ""])
)
@example(path="/v1/completions", content=b"\x1f\x8b", kind="application/json")
def test_random_bytes(small: httpx.Client, path: str, content: bytes, kind: str) -> None:
    check(small.post(path, content=content, headers={"Content-Type": kind}))


@FEW
@given(
    parts=st.lists(
        st.binary(max_size=60)
        | st.sampled_from([b"--x", b"--x--", b"\r\n", b'Content-Disposition: form-data; name="file"'])
    )
)
def test_random_forms(small: httpx.Client, parts: list[bytes]) -> None:
    session = small.post("/v1/sessions").json()["id"]
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    check(small.post(f"/v1/sessions/{session}/documents", content=b"\r\n".join(parts), headers=kind))
    small.delete(f"/v1/sessions/{session}")


NAMES = ["x-session-id", "authorization", "content-type", "accept", "idempotency-key", "if-match"]


@FEW
@given(name=st.sampled_from(NAMES), value=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=300))
def test_random_headers(small: httpx.Client, name: str, value: str) -> None:
    given = [(name.encode(), value.strip().encode("latin-1"))]
    kind = [] if name == "content-type" else [(b"content-type", b"application/json")]
    check(small.post("/v1/completions", content=b'{"prompt": "x", "max_tokens": 1}', headers=[*kind, *given]))
    check(small.get("/v1/sessions", headers=given))
