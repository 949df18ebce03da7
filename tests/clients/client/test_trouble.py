"""What the client does about servers that refuse, break off or say nonsense; one that follows a script plays them."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cairn_client import (
    ApiError,
    BadReply,
    BadRequest,
    Busy,
    Cairn,
    Changed,
    Forbidden,
    KeyReused,
    NotFound,
    NotReachable,
    NotReady,
    RateLimited,
    Retries,
    ServerFailed,
    TimedOut,
    TooLarge,
    Unauthorized,
    Unavailable,
)

SESSION = {"id": "s1", "tokens": 3, "created": 1, "used": 2}
FAST = Retries(attempts=2, first=0.01, longest=0.02)
DROP: tuple[int, bytes, dict[str, str]] = (0, b"", {})


def error(status: int, code: str = "x", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    body = {"error": {"message": "no", "type": "t", "param": "p", "code": code, "limit": 5, "wanted": 9}}
    return status, json.dumps(body).encode(), {name.replace("_", "-"): value for name, value in headers.items()}


def fine(body: object, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(body).encode(), headers


@dataclass
class Scripted:
    """Answers one request after another as the script says, and remembers them."""

    script: list[tuple[int, bytes, dict[str, str]]] = field(default_factory=list)
    heard: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        body = handler.rfile.read(int(headers.get("content-length", 0)))
        self.heard.append((handler.command, handler.path, headers, body))
        status, content, told = self.script.pop(0)
        handler.close_connection = True
        if status:
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **told}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(content)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    told = Scripted()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            told.answer(self)

        do_GET = do_POST = do_DELETE = do_PATCH = _any  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        told.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield told
        server.shutdown()
        thread.join()


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, make: Callable[..., Cairn], scripted: Scripted) -> Cairn:
    return make(request.param, scripted.url, retries=FAST, timeout=5.0)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest), (401, Unauthorized), (403, Forbidden), (404, NotFound), (409, Busy), (412, Changed),
        (413, TooLarge), (418, BadRequest), (422, BadRequest), (429, RateLimited), (500, ServerFailed),
        (502, ServerFailed), (503, Unavailable),
    ],
)  # fmt: skip
def test_each_status_is_an_error_of_its_own(client: Cairn, scripted: Scripted, status: int, kind: type) -> None:
    scripted.script = [error(status)] * 3
    with pytest.raises(ApiError) as caught:
        client.sessions.get("s1")
    assert type(caught.value) is kind
    told = (caught.value.status, caught.value.message, caught.value.param, caught.value.code)
    assert told == (status, "no", "p", "x")
    assert type(pickle.loads(pickle.dumps(caught.value))) is kind
    if isinstance(caught.value, TooLarge):
        assert (caught.value.limit, caught.value.wanted) == (5, 9)


def test_a_reused_key_is_told(client: Cairn, scripted: Scripted) -> None:
    scripted.script = [error(422, "idempotency_key_reused")]
    with pytest.raises(KeyReused):
        client.sessions.create(idempotency_key="mine")
    assert scripted.heard[0][2]["idempotency-key"] == "mine"


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"", b"[]", b'{"error": "odd"}', b'{"detail": 5}'])
def test_an_error_without_the_usual_body(client: Cairn, scripted: Scripted, body: bytes) -> None:
    scripted.script = [(502, body, {})]
    with pytest.raises(ServerFailed) as caught:
        client.sessions.get("s1")
    assert caught.value.status == 502
    assert str(caught.value)


def test_it_comes_back_when_it_is_told_to(client: Cairn, scripted: Scripted) -> None:
    scripted.script = [error(429, Retry_After="0.3"), error(503, "loading"), fine(SESSION)]
    start = time.monotonic()
    assert client.sessions.get("s1").tokens == 3
    assert 0.3 <= time.monotonic() - start < 2


def test_it_does_not_wait_for_hours(client: Cairn, scripted: Scripted) -> None:
    scripted.script = [error(429, Retry_After="3600")]
    with pytest.raises(RateLimited) as caught:
        client.sessions.get("s1")
    assert caught.value.retry_after == 3600
    assert len(scripted.heard) == 1


def test_it_gives_up_in_the_end(client: Cairn, scripted: Scripted) -> None:
    scripted.script = [error(429)] * 5
    with pytest.raises(RateLimited):
        client.sessions.get("s1")
    assert len(scripted.heard) == 3


def test_a_creation_is_repeated_under_the_same_key(client: Cairn, scripted: Scripted) -> None:
    scripted.script = [DROP, error(503), fine(SESSION), fine(SESSION)]
    assert client.sessions.create().id == "s1"
    client.sessions.create()
    keys = [headers["idempotency-key"] for _, _, headers, _ in scripted.heard]
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_what_may_have_been_done_is_not_done_again(client: Cairn, scripted: Scripted) -> None:
    scripted.script = [DROP]
    with pytest.raises(NotReachable, match="broke"):
        client.sessions.append("s1", "text")
    scripted.script = [error(503, "unavailable")]
    with pytest.raises(Unavailable):
        client.chat("Hello", session="s1")
    assert len(scripted.heard) == 2


def test_what_was_refused_is_done_again(client: Cairn, scripted: Scripted) -> None:
    whole = {**SESSION, "appended_tokens": 3}
    scripted.script = [error(429), error(503, "loading"), stream(whole)]
    assert client.sessions.append("s1", "text").tokens == 3


def test_a_deletion_that_was_done_by_the_first_attempt(client: Cairn, scripted: Scripted) -> None:
    scripted.script = [DROP, error(404), error(404)]
    client.sessions.delete("s1")
    with pytest.raises(NotFound):
        client.sessions.delete("s1")


def test_a_file_is_sent_again_from_its_beginning(client: Cairn, scripted: Scripted) -> None:
    scripted.script = [error(429), fine({**SESSION, "restored_tokens": 2})]
    sent: list[tuple[int, int | None]] = []
    data = bytes(range(256)) * 3000
    assert client.sessions.import_from(data, progress=lambda *told: sent.append(told)).restored_tokens == 2
    assert [body for *_, body in scripted.heard] == [data, data]
    assert sent[-1] == (len(data), len(data))


def test_a_condition_is_sent(client: Cairn, scripted: Scripted) -> None:
    scripted.script = [fine(SESSION, ETag='"7"'), error(412)]
    session = client.sessions.get("s1")
    with pytest.raises(Changed):
        client.sessions.rewind(session, tokens=1, if_match=session.etag)
    assert scripted.heard[1][2]["if-match"] == '"7"'
    assert json.loads(scripted.heard[1][3]) == {"tokens": 1}
    with pytest.raises(ValueError, match="either"):
        client.sessions.rewind(session)


def test_pages_are_followed(client: Cairn, scripted: Scripted) -> None:
    first = {"data": [SESSION, SESSION | {"id": "a/b"}], "has_more": True, "last_id": "a/b"}
    scripted.script = [fine(first), fine({"data": [SESSION | {"id": "s3"}], "has_more": False})]
    assert [session.id for session in client.sessions.list(order="asc")] == ["s1", "a/b", "s3"]
    assert [path for _, path, _, _ in scripted.heard] == [
        "/v1/sessions?limit=100&order=asc",
        "/v1/sessions?limit=100&after=a%2Fb&order=asc",
    ]


@pytest.mark.parametrize(
    ("reply", "problem"),
    [(fine([]), "no JSON object"), (fine({"id": 1}), "not understood"), ((200, b"<html>", {}), "no JSON object")],
)
def test_nonsense_is_told(client: Cairn, scripted: Scripted, reply: Any, problem: str) -> None:
    scripted.script = [reply]
    with pytest.raises(BadReply, match=problem):
        client.sessions.get("s1")


def stream(*events: object, end: bytes = b"data: [DONE]\n\n") -> tuple[int, bytes, dict[str, str]]:
    frames = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return 200, b": hello\n\n" + frames + end, {}


@pytest.mark.parametrize(
    ("reply", "kind", "problem"),
    [
        (stream(end=b""), BadReply, "before it was complete"),
        (stream({"error": {"message": "slow", "type": "rate_limit_error"}}), RateLimited, "slow"),
        (stream({"error": {"message": "broke", "type": "server_error"}}), ServerFailed, "broke"),
        (stream({"error": {"message": "bad", "type": "invalid_request_error"}}), BadRequest, "bad"),
        (stream([1]), BadReply, "else than an object"),
        (stream(end=b"data: {oops\n\n"), BadReply, "not JSON"),
    ],
)
def test_a_stream_that_breaks_off(
    client: Cairn, scripted: Scripted, reply: Any, kind: type[Exception], problem: str
) -> None:
    scripted.script = [reply]
    with client.chat_stream("Hello") as events, pytest.raises(kind, match=problem):
        list(events)


def test_tool_calls_are_put_together(client: Cairn, scripted: Scripted) -> None:
    def part(**call: object) -> dict[str, object]:
        return {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **call}]}}]}

    first = part(id="t1", function={"name": "weather", "arguments": ""})
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    pieces = [part(function={"arguments": piece}) for piece in ('{"city": ', '"Oslo"}')]
    scripted.script = [stream(first, *pieces, end)]
    with client.chat_stream("How is it outside?", tools=[{"type": "function"}]) as events:
        list(events)
    [call] = events.answer.tool_calls
    assert (call.id, call.name, json.loads(call.arguments)) == ("t1", "weather", {"city": "Oslo"})
    assert events.answer.finish_reason == "tool_calls"


def test_nobody_there(make: Callable[..., Cairn]) -> None:
    for kind in ("sync", "async"):
        client = make(kind, "http://127.0.0.1:9", retries=FAST)
        with pytest.raises(NotReachable, match=r"127\.0\.0\.1:9"):
            client.health()
        with pytest.raises(NotReady, match=r"does not answer after 0\.1 s"):
            client.wait_until_ready(0.1)


def test_a_server_that_can_not_load_its_model(client: Cairn, scripted: Scripted) -> None:
    scripted.script = [
        (503, b'{"status": "loading"}', {}),
        (503, b'{"status": "failed", "error": "no such model"}', {}),
    ]
    with pytest.raises(NotReady, match="could not load"):
        client.wait_until_ready(5)


def test_silence_is_told(make: Callable[..., Cairn], scripted: Scripted) -> None:
    scripted.script = [(200, b"", {"Content-Length": "5"})]
    with pytest.raises(NotReachable) as caught:
        make("sync", scripted.url, timeout=0.2, retries=Retries(attempts=0)).version()
    assert "silent" in str(caught.value) or "broke" in str(caught.value)
    assert isinstance(caught.value, TimedOut) or "broke" in str(caught.value)


def test_an_address_needs_no_scheme(make: Callable[..., Cairn], scripted: Scripted) -> None:
    scripted.script = [fine({"version": "1"})]
    client = make("sync", scripted.url.removeprefix("http://"))
    assert client.version() == "1"
    assert client.url == scripted.url


def test_the_key_and_the_address_of_the_environment(monkeypatch: pytest.MonkeyPatch, scripted: Scripted) -> None:
    monkeypatch.setenv("CAIRN_URL", f"{scripted.url}/v1/")
    monkeypatch.setenv("CAIRN_API_KEY", "secret")
    scripted.script = [fine({"version": "1"})] * 2
    for client in (Cairn(), Cairn(api_key="mine")):
        with client:
            assert client.version() == "1"
            assert client.url == scripted.url
    keys = [headers["authorization"] for _, _, headers, _ in scripted.heard]
    assert keys == ["Bearer secret", "Bearer mine"]
    assert scripted.heard[0][1] == "/version"
