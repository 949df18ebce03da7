"""What is refused before anybody asks for a key: large headers, foreign hosts, web pages from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.door import allowed_hosts
from server.settings import Settings
from tests.server.test_durability import served

PAGE = "https://page.example"
Headers = dict[str, str]


@pytest.fixture(scope="module")
def keyless(tiny_folder: Path) -> Iterator[httpx.Client]:
    """Everybody may use it: what makes a browser on this machine dangerous."""
    with served(tiny_folder, kv_bytes=8 << 20, max_header_bytes=8192) as client:
        yield client


@pytest.fixture(scope="module")
def for_a_page(tiny_folder: Path) -> Iterator[httpx.Client]:
    """A server with a key, that one web page may use."""
    settings: dict[str, Any] = {"api_keys": ("first-key",), "allowed_origins": (PAGE,), "docs_page": False}
    with served(tiny_folder, kv_bytes=8 << 20, allowed_hosts=("cairn.example",), **settings) as client:
        yield client


def refused(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "LOCALHOST.", "127.0.0.1:1", "[::1]:8000", "10.0.0.7"])
def test_a_server_without_keys_answers_to_its_own_names(keyless: httpx.Client, host: str) -> None:
    assert keyless.get("/v1/sessions", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["page.example", "localhost.page.example", "127.0.0.1.page.example:8000"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/sessions"), ("POST", "/v1/sessions"), ("GET", "/health")])
def test_a_rebound_name_is_refused(keyless: httpx.Client, host: str, method: str, path: str) -> None:
    """DNS rebinding: the page's own name leads to this machine, so the browser takes the server for the page's."""
    refused(keyless.request(method, path, headers={"Host": host}), 403, "wrong_host")


def test_which_names_are_known() -> None:
    assert allowed_hosts(Settings()) == ("127.0.0.1", "localhost", "::1", "host.docker.internal")
    assert allowed_hosts(Settings(host="0.0.0.0")) == ("*",), "it is meant to be reached from elsewhere"
    assert allowed_hosts(Settings(api_keys=("key",))) == ("*",), "a page has no key"
    assert allowed_hosts(Settings(allowed_hosts=("Cairn.example",))) == ("cairn.example",)


def test_other_names_can_be_allowed(for_a_page: httpx.Client) -> None:
    key = {"Authorization": "Bearer first-key"}
    assert for_a_page.get("/v1/models", headers={**key, "Host": "CAIRN.example:443"}).status_code == 200
    refused(for_a_page.get("/v1/models", headers={**key, "Host": "localhost"}), 403, "wrong_host")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": PAGE},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_from_elsewhere_changes_nothing(keyless: httpx.Client, headers: Headers) -> None:
    """A browser sends such requests for any page, and asks only afterwards whether the page may see the answer."""
    before = len(keyless.get("/v1/sessions?limit=100").json()["data"])
    refused(keyless.post("/v1/sessions", headers=headers), 403, "wrong_origin")
    text = {"content": b'{"prompt": "x"}', "headers": {**headers, "Content-Type": "text/plain"}}
    refused(keyless.post("/v1/completions", **text), 403, "wrong_origin")  # type: ignore[arg-type]
    assert len(keyless.get("/v1/sessions?limit=100").json()["data"]) == before


def test_the_servers_own_page_may_ask(keyless: httpx.Client) -> None:
    own = {"Origin": str(keyless.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert keyless.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}, headers=own).status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/sessions", "/tokenize"])
def test_a_body_must_be_said_to_be_json(keyless: httpx.Client, kind: str, path: str) -> None:
    """What a page can send without asking is not taken for JSON."""
    response = keyless.post(path, content=b'{"prompt": "x"}', headers={"Content-Type": kind} if kind else {})
    refused(response, 415, "unsupported_media_type")


def test_pages_are_told_nothing_unless_allowed(keyless: httpx.Client, for_a_page: httpx.Client) -> None:
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    refusal = keyless.options("/v1/completions", headers=asks)
    assert refusal.status_code == 405
    for response in (refusal, keyless.get("/v1/models", headers={"Origin": PAGE})):
        assert not [name for name in response.headers if name.startswith("access-control")]
    here = {"Host": "cairn.example"}
    allowed = for_a_page.options("/v1/completions", headers={**asks, **here})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, PAGE)
    other = for_a_page.options("/v1/completions", headers={**asks, **here, "Origin": "https://other.example"})
    assert other.status_code == 400
    key = {"Authorization": "Bearer first-key", "Origin": PAGE, **here}
    answer = for_a_page.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}, headers=key)
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-credentials" not in answer.headers
    wrong = for_a_page.get("/v1/models", headers={"Origin": PAGE, **here})
    assert (wrong.status_code, wrong.headers["access-control-allow-origin"]) == (401, PAGE), "a page sees why"


def test_the_description_can_be_switched_off(keyless: httpx.Client, for_a_page: httpx.Client) -> None:
    headers = {"Authorization": "Bearer first-key", "Host": "cairn.example"}
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert keyless.get(path).status_code == 200
        assert for_a_page.get(path, headers=headers).status_code == 404


@pytest.mark.parametrize("path", ["/v1/models", "/v1/sessions/nobody", "/nothing", "/health", "/metrics"])
def test_no_answer_is_kept_or_taken_for_a_page(keyless: httpx.Client, path: str) -> None:
    headers = keyless.get(path).headers
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")


def test_urls_and_headers_are_bounded(keyless: httpx.Client) -> None:
    refused(keyless.get("/v1/models/" + "x" * 8192), 414, "url_too_long")
    refused(keyless.get("/v1/models", params={"x": "y" * 8192}), 414, "url_too_long")
    refused(keyless.get("/v1/models", headers={f"x-{number}": "" for number in range(100)}), 431, "headers_too_large")
    refused(keyless.get("/v1/models", headers={"x-long": "x" * 8192}), 431, "headers_too_large")
    assert keyless.get("/v1/models", headers={"x-long": "x" * 7000}).status_code == 200
