"""Each wrong request gets the right status and OpenAI's body, at once; afterwards a good one still works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "Hello"}
LANDMARK = 5
JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def _goes_on_serving(cairn: httpx.Client) -> Iterator[None]:
    yield
    response = cairn.post(CHAT, json={"messages": [USER], "max_tokens": 1})
    assert response.status_code == 200, response.text


def refused(response: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert error["message"]
    assert error["param"] == param, error
    return error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": 1 << 70}, "seed"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 1025}, "n"),
        ({"n": 17}, "n"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": "x" * 1001}, "stop.0"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"7": 101}}, "logit_bias"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"return_progress": True}, "return_progress"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"audio": {}}, "audio"),
        ({"store": True}, "store"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"retrieval": {"blocks_per_head": -1}}, "retrieval.blocks_per_head"),
        ({"retrieval": {"passages": 0}}, "retrieval.passages"),
        ({"retrieval": {"other": 1}}, "retrieval.other"),
        ({"retrieval": {"provenance": True}, "n": 2}, "retrieval.provenance"),
    ],
)
def test_a_wrong_field_is_named(cairn: httpx.Client, fields: dict[str, Any], param: str) -> None:
    error = refused(cairn.post(CHAT, json={"messages": [USER], **fields}), 400, param)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("prompt", ["", [], [[]], [""], None, 7, [1.5], [True], [1, "x"], [-1], [99999], [LANDMARK]])
def test_a_wrong_prompt_is_refused(cairn: httpx.Client, prompt: Any) -> None:
    error = refused_prompt(cairn.post(COMPLETIONS, json={"prompt": prompt}))
    assert "prompt" in error["message"]


def refused_prompt(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["param"] in ("prompt", None)
    return error


def test_too_many_prompts(cairn: httpx.Client) -> None:
    refused(cairn.post(COMPLETIONS, json={"prompt": ["x"] * 9, "n": 2}), 400, "prompt")


def test_an_unknown_model(cairn: httpx.Client) -> None:
    error = refused(cairn.post(CHAT, json={"messages": [USER], "model": "gpt-9"}), 404, "model")
    assert error["code"] == "model_not_found"
    refused(cairn.get("/v1/models/gpt-9"), 404, "model")
    refused(cairn.post("/tokenize", json={"prompt": "x", "model": "gpt-9"}), 404, "model")


def test_an_unknown_session(cairn: httpx.Client) -> None:
    asked = {"messages": [USER], "session_id": "nobody"}
    assert refused(cairn.post(CHAT, json=asked), 404)["code"] == "session_not_found"
    refused(cairn.post(CHAT, json={**asked, "stream": True}), 404)
    refused(cairn.get("/v1/sessions/nobody"), 404)
    refused(cairn.delete("/v1/sessions/nobody"), 404)
    refused(cairn.post("/v1/sessions/nobody/fork"), 404)
    refused(cairn.post("/v1/sessions/nobody/append", json={"text": "x"}), 404)


def test_an_empty_text_changes_nothing(cairn: httpx.Client) -> None:
    session = cairn.post("/v1/sessions").json()["id"]
    refused(cairn.post(f"/v1/sessions/{session}/append", json={"text": ""}), 400)
    refused(cairn.post(CHAT, json={"messages": [USER], "session_id": session, "n": 2}), 400, "n")
    assert cairn.get(f"/v1/sessions/{session}").json()["tokens"] == 0


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"",
        b"[]",
        b"null",
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_body_that_is_no_json_of_ours(cairn: httpx.Client, content: bytes) -> None:
    response = cairn.post(CHAT, content=content, headers=JSON)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_half_a_surrogate_pair_is_no_text(cairn: httpx.Client) -> None:
    half = "\\ud800"
    for field, body in (
        ("messages.0.content", f'{{"messages": [{{"role": "user", "content": "{half}"}}]}}'),
        ("stop.0", f'{{"messages": [{{"role": "user", "content": "x"}}], "stop": ["{half}"]}}'),
    ):
        refused(cairn.post(CHAT, content=body, headers=JSON), 400, field)
    refused(cairn.post(COMPLETIONS, content=f'{{"prompt": ["x", "{half}"]}}', headers=JSON), 400, "prompt")
    refused(cairn.post("/tokenize", content=f'{{"prompt": "{half}"}}', headers=JSON), 400, "prompt")


def test_unknown_routes_and_methods(cairn: httpx.Client) -> None:
    refused(cairn.get("/v1/nothing"), 404)
    refused(cairn.get(CHAT), 405)


def test_detokenize_refuses_unknown_tokens(cairn: httpx.Client) -> None:
    refused(cairn.post("/detokenize", json={"tokens": [4096]}), 400, "tokens")
    refused(cairn.post("/detokenize", json={"tokens": [-1]}), 400, "tokens.0")
    refused(cairn.post("/tokenize", json={}), 400, "prompt")


KEY = {"Authorization": "Bearer first-key"}


def test_a_text_beyond_the_limit_tells_the_limit(guarded: httpx.Client) -> None:
    asked = {"prompt": "word " * 5000, "max_tokens": 1}
    error = refused(guarded.post(COMPLETIONS, json=asked, headers=KEY), 413)
    assert (error["limit"], error["code"]) == (4000, "session_too_long")
    assert error["wanted"] > 4000
    session = guarded.post("/v1/sessions", headers=KEY).json()["id"]
    refused(guarded.post(f"/v1/sessions/{session}/append", json={"text": "word " * 5000}, headers=KEY), 413)
    assert guarded.get(f"/v1/sessions/{session}", headers=KEY).json()["tokens"] == 0
    refused(guarded.post(CHAT, json={"messages": [USER], "max_tokens": 5000}, headers=KEY), 413)
    guarded.delete(f"/v1/sessions/{session}", headers=KEY)


def test_a_body_beyond_the_limit(guarded: httpx.Client) -> None:
    text = json.dumps({"prompt": "x" * 200_000}).encode()
    announced = guarded.post(COMPLETIONS, content=text, headers={**KEY, **JSON})
    assert refused(announced, 413)["limit"] == 100_000
    pieces = (text[at : at + 10_000] for at in range(0, len(text), 10_000))
    unannounced = guarded.post(COMPLETIONS, content=pieces, headers={**KEY, **JSON})
    refused(unannounced, 413)


def test_a_full_queue_says_when_to_come_back(guarded: httpx.Client) -> None:
    asked = {"prompt": "x", "max_tokens": 3000, "ignore_eos": True, "stream": True}
    with (
        guarded.stream("POST", COMPLETIONS, json=asked, headers=KEY) as running,
        guarded.stream("POST", COMPLETIONS, json=asked, headers=KEY) as waiting,
    ):
        first = running.iter_lines()
        next(first)
        assert waiting.status_code == 200
        response = guarded.post(COMPLETIONS, json=asked, headers=KEY)
        assert refused(response, 429)["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1


def test_no_room_beside_kept_sessions(guarded: httpx.Client) -> None:
    """3 MiB hold one session of 3,500 tokens and not two."""
    sessions, codes = [], []
    for _ in range(3):
        session = guarded.post("/v1/sessions", headers=KEY).json()["id"]
        sessions.append(session)
        response = guarded.post(f"/v1/sessions/{session}/append", json={"text": "word " * 3500}, headers=KEY)
        codes.append(response.status_code)
        if response.status_code != 200:
            assert refused(response, 429)["code"] == "out_of_room"
            break
    assert codes[0] == 200
    assert codes[-1] == 429
    for session in sessions:
        guarded.delete(f"/v1/sessions/{session}", headers=KEY)
    assert guarded.post(COMPLETIONS, json={"prompt": "word " * 3500, "max_tokens": 1}, headers=KEY).status_code == 200
