"""Over bare sockets: what is no HTTP, who is too slow, who leaves, and too many at once. The server goes on serving."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.durable import eventually
from tests.server.test_durability import served

HELLO = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
PATIENCE = 0.5


@pytest.fixture(scope="module")
def impatient(tiny_folder: Path) -> Iterator[httpx.Client]:
    small: dict[str, Any] = {"max_header_bytes": 4096, "max_session_tokens": 2000, "kv_bytes": 8 << 20}
    with served(tiny_folder, receive_seconds=PATIENCE, request_seconds=1.0, max_connections=20, **small) as client:
        yield client


@pytest.fixture(autouse=True)
def _goes_on_serving(impatient: httpx.Client) -> Iterator[None]:
    yield
    answer = impatient.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
    assert answer.status_code == 200, answer.text
    eventually(lambda: "cairn_num_requests_running 0.0" in impatient.get("/metrics").text)


def connect(client: httpx.Client) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(client.base_url.port or 0)), timeout=10)
    connection.settimeout(10)
    return connection


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:  # what we sent was not read any more
        pass
    return received


def spoken(client: httpx.Client, data: bytes) -> bytes:
    with connect(client) as connection:
        connection.sendall(data)
        return rest(connection)


def error_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    return int(head.split()[1]), error["code"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
        b"HELLO\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: page.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n123456",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"-5\r\nhello\r\n",
        CHUNKED + b"5\r\nhelloXX",
        CHUNKED + b"f" * 21 + b"\r\n",
    ],
)
def test_what_is_no_http_gets_an_error_body(impatient: httpx.Client, data: bytes) -> None:
    status, code = error_of(spoken(impatient, data))
    assert status in (400, 501)
    assert code == "invalid_http"


def test_two_lengths_are_not_taken_for_one(impatient: httpx.Client) -> None:
    """Request smuggling: who stands before the server must not see another end of the body than the server."""
    data = POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HELLO
    assert error_of(spoken(impatient, data)) == (400, "invalid_http")


def test_endless_headers_are_cut_off(impatient: httpx.Client) -> None:
    assert error_of(spoken(impatient, b"GET /health HTTP/1.1\r\nx: " + b"y" * 8000)) == (431, "invalid_http")


@pytest.mark.parametrize("data", [b"", b"GET /hea", HELLO + b"GET /he", POST, CHUNKED, CHUNKED + b"5\r\nhel"])
def test_who_does_not_go_on_is_cut_off(impatient: httpx.Client, data: bytes) -> None:
    begun = time.monotonic()
    answer = spoken(impatient, data).rpartition(b"HTTP/1.1 ")[2]
    assert time.monotonic() - begun < PATIENCE + 5
    assert error_of(b"HTTP/1.1 " + answer) == (408, "request_too_slow")


def test_drops_do_not_buy_time(impatient: httpx.Client) -> None:
    """Slowloris: a byte now and then."""
    begun = time.monotonic()
    with connect(impatient) as connection:
        try:
            connection.sendall(POST)
            for _ in range(100):
                connection.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            pass
    assert time.monotonic() - begun < PATIENCE + 3


def test_a_slow_but_steady_body_is_read(impatient: httpx.Client) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 1}).encode().ljust(4096)
    with connect(impatient) as connection:
        connection.sendall(POST + b"Connection: close\r\nContent-Length: 4096\r\n\r\n")
        for at in range(0, 4096, 256):  # 2.5 KiB a second, for three times as long as the patience
            connection.sendall(body[at : at + 256])
            time.sleep(0.1)
        assert rest(connection).startswith(b"HTTP/1.1 200")


def test_a_refused_body_is_not_read_for_ever(impatient: httpx.Client) -> None:
    with connect(impatient) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        begun = time.monotonic()
        assert rest(connection).startswith(b"HTTP/1.1 404")
        assert time.monotonic() - begun < PATIENCE + 5


def test_beyond_so_many_connections_the_next_is_refused(impatient: httpx.Client) -> None:
    connections = [connect(impatient) for _ in range(25)]
    try:
        assert error_of(rest(connections[-1])) == (503, "too_many_connections")
    finally:
        for connection in connections:
            connection.close()
    eventually(lambda: answers_again(impatient))


def answers_again(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def test_a_request_may_take_so_long(impatient: httpx.Client) -> None:
    asked = {"prompt": "x", "max_tokens": 1900, "ignore_eos": True}
    begun = time.monotonic()
    whole = impatient.post("/v1/completions", json=asked)
    assert time.monotonic() - begun < 6
    assert (whole.status_code, whole.json()["error"]["code"]) == (504, "request_timeout")
    assert whole.headers["x-should-retry"] == "false"
    lines = [
        line for line in impatient.post("/v1/completions", json={**asked, "stream": True}).text.split("\n") if line
    ]
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "request_timeout"
    assert lines[-1] == "data: [DONE]"


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(cut=st.integers(0, 400), wait=st.sampled_from([0.0, 0.0, 0.02, 0.1]), stream=st.booleans())
def test_who_leaves_at_any_moment_leaves_nothing_behind(
    impatient: httpx.Client, cut: int, wait: float, stream: bool
) -> None:
    body = json.dumps({"prompt": "a b c " * 10, "max_tokens": 300, "ignore_eos": True, "stream": stream}).encode()
    data = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with connect(impatient) as connection:
        connection.sendall(data[: max(1, cut)])
        time.sleep(wait)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.binary(min_size=1, max_size=200), prefix=st.sampled_from([b"", b"GET /", POST, CHUNKED]))
def test_random_bytes_end_in_an_answer_or_a_close(impatient: httpx.Client, data: bytes, prefix: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(prefix + data + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = rest(connection)
    for head, _, body in (part.partition(b"\r\n\r\n") for part in answer.split(b"HTTP/1.1 ")[1:]):
        assert int(head[:3]) < 500 or head.startswith(b"501")
        assert json.loads(body)
