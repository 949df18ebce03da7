"""Neither logs nor error pages hold a prompt, an answer or a key, whatever goes wrong."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import logs
from server.chat import Conversations
from server.settings import Settings
from server.shapes import ChatShape
from tests.server.test_durability import served

CANARY, KEY = "canary-7f3a", "key-canary-91c2"
MESSAGES = [{"role": "user", "content": f"a secret: {CANARY}"}]
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """All that a server logs whose level is debug."""
    written = io.StringIO()
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    root.handlers[:] = []
    monkeypatch.setattr("sys.stderr", written)
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "propagate", True)  # as in a process of its own
    logs.configure(Settings(log_level="debug", access_log=True))
    yield written
    root.level, root.handlers[:] = before


def provoke(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> str:
    """Requests that hold the canary and go right, wrong, and very wrong; what the wrong ones were answered."""
    chat = "/v1/chat/completions"
    good = {"messages": MESSAGES, "max_tokens": 4}
    assert client.post(chat, json=good).status_code == 200
    assert client.post(chat, json={**good, "stream": True}).status_code == 200
    session = client.post("/v1/sessions").json()["id"]
    assert client.post(f"/v1/sessions/{session}/append", json={"text": CANARY}).status_code == 200
    wrong: list[httpx.Response] = [
        client.post(chat, json={**good, "temperature": 9}),
        client.post(chat, json={**good, "messages": [{"role": CANARY, "content": CANARY}]}),
        client.post(chat, json={**good, "messages": [{"role": "user", "content": [{"type": CANARY}]}]}),
        client.post(chat, json={**good, "stop": [CANARY, ""]}),
        client.post(chat, json={**good, "max_tokens": 10**6}),
        client.post(chat, content=f'{{"messages": "{CANARY}'.encode(), headers={"Content-Type": "application/json"}),
        client.post(chat, content=CANARY.encode()),
        client.post("/v1/completions", json={"prompt": CANARY, "n": 900}),
        client.get("/v1/models", headers={"Authorization": f"Bearer wrong{KEY}"}),
    ]
    for owner, name in ((Conversations, "tokens"), (ChatShape, "whole"), (ChatShape, "delta")):
        with monkeypatch.context() as broken:
            broken.setattr(owner, name, fail)
            wrong += [client.post(chat, json=good), client.post(chat, json={**good, "stream": True})]
    assert {response.status_code for response in wrong} >= {400, 401, 413, 415, 500}
    return "".join(response.text for response in wrong)


def fail(*arguments: Any, **named: Any) -> Any:
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        raise ValueError(f"cannot handle {CANARY}, {arguments}, {named}") from error


def test_texts_and_keys_stay_out_of_logs_and_error_pages(
    tiny_folder: Path, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tiny_folder, api_keys=(KEY,), log_level="debug", access_log=True) as client:
        client.headers.update(BEARER)
        told = provoke(client, monkeypatch)
        metrics = client.get("/metrics").text
    text = log.getvalue()
    assert "request failed" in text
    assert "in fail" in text, "where it happened"
    assert "builtins.ValueError" in text
    assert '"POST /v1/chat/completions HTTP/1.1" 500' in text
    for place in (text, told, metrics):
        assert CANARY not in place
        assert KEY not in place


def test_what_is_sent_is_logged_if_asked_for(tiny_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with served(tiny_folder, api_keys=(KEY,), log_prompts=True) as client:
        client.post("/v1/completions", json={"prompt": CANARY, "max_tokens": 1}, headers=BEARER)
    assert CANARY in caplog.text
    assert KEY not in caplog.text


def test_errors_of_the_machine_keep_their_words() -> None:
    formatter = logs.DiscreetFormatter(logs.FORMAT)
    try:
        raise OSError("the disk is full")
    except OSError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("cairn", logging.ERROR, "", 0, "failed", (), info)
    assert "builtins.OSError: the disk is full" in formatter.format(record)
