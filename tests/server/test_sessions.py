"""Sessions: a text is read once, and every later question finds it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

Events = Callable[[httpx.Response], list[dict[str, Any]]]
TEXT = "The grass is green. The sky is blue. Here we go. There and back again. " * 12
QUESTION = "What is the pass key for Lisbon?"


def create(client: httpx.Client) -> str:
    response = client.post("/v1/sessions", json={})
    assert response.status_code == 201
    assert response.headers["x-session-id"] == response.json()["id"]
    return str(response.json()["id"])


def append(client: httpx.Client, session: str, text: str) -> dict[str, Any]:
    response = client.post(f"/v1/sessions/{session}/append", json={"text": text})
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


def question(session: str | None, content: str = QUESTION, **more: Any) -> dict[str, Any]:
    named = {"session_id": session} if session else {}
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8, **named, **more}


def chat(client: httpx.Client, session: str, content: str = QUESTION, **more: Any) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json=question(session, content, **more))
    assert response.status_code == 200, response.text
    assert response.headers["x-session-id"] == session
    told: dict[str, Any] = response.json()
    return told


def count(client: httpx.Client, text: str) -> int:
    return int(client.post("/tokenize", json={"prompt": text}).json()["count"])


def test_create_list_get_delete(cairn: httpx.Client) -> None:
    session = create(cairn)
    told = cairn.get(f"/v1/sessions/{session}").json()
    assert told.keys() == {"id", "object", "tokens", "created", "used", "parent", "busy", "pinned", "ttl_seconds"}
    assert (told["tokens"], told["parent"], told["busy"]) == (0, None, False)
    assert session in [each["id"] for each in cairn.get("/v1/sessions?limit=100").json()["data"]]
    assert cairn.delete(f"/v1/sessions/{session}").json() == {
        "id": session,
        "object": "session.deleted",
        "deleted": True,
    }
    assert cairn.get(f"/v1/sessions/{session}").status_code == 404
    assert session not in [each["id"] for each in cairn.get("/v1/sessions?limit=100").json()["data"]]


def test_only_what_is_new_is_read(cairn: httpx.Client) -> None:
    session = create(cairn)
    appended = append(cairn, session, TEXT)
    assert appended["appended_tokens"] == appended["tokens"] == count(cairn, TEXT)
    first = chat(cairn, session)["usage"]
    asked = count(cairn, QUESTION) + 3  # <|user|> ... <|end|><|assistant|>
    assert first["prompt_tokens"] == appended["tokens"] + asked
    assert first["prompt_tokens_details"]["cached_tokens"] >= appended["tokens"] - 1
    second = chat(cairn, session)["usage"]
    assert second["prompt_tokens"] == first["prompt_tokens"] + first["completion_tokens"] + asked
    assert second["prompt_tokens_details"]["cached_tokens"] >= first["prompt_tokens"]


def test_a_session_answers_as_one_long_prompt(cairn: httpx.Client) -> None:
    session = create(cairn)
    for part in (TEXT[:300], TEXT[300:]):
        append(cairn, session, part)
    tokens = [cairn.post("/tokenize", json={"prompt": part}).json()["tokens"] for part in (TEXT[:300], TEXT[300:])]
    new = cairn.post("/tokenize", json={"messages": question(None)["messages"]}).json()["tokens"]
    asked = {"prompt": [*tokens[0], *tokens[1], *new], "temperature": 0, "max_tokens": 8}
    alone = cairn.post("/v1/completions", json=asked).json()["choices"][0]["text"]
    assert chat(cairn, session)["choices"][0]["message"]["content"] == alone


def test_progress_is_streamed_while_a_text_is_read(cairn: httpx.Client, events: Events) -> None:
    session = create(cairn)
    told = events(cairn.post(f"/v1/sessions/{session}/append", json={"text": TEXT * 3, "stream": True}))
    progress = [each["prompt_progress"] for each in told if "prompt_progress" in each]
    assert progress[-1]["processed"] == progress[-1]["total"] == told[-1]["tokens"]
    assert [each["processed"] for each in progress] == sorted(each["processed"] for each in progress)
    assert told[-1]["object"] == "session"


def test_a_fork_goes_its_own_way(cairn: httpx.Client) -> None:
    session = create(cairn)
    append(cairn, session, TEXT)
    before = cairn.get(f"/v1/sessions/{session}").json()["tokens"]
    forked = cairn.post(f"/v1/sessions/{session}/fork")
    assert forked.status_code == 201
    assert (forked.json()["parent"], forked.json()["tokens"]) == (session, before)
    answered = chat(cairn, forked.json()["id"])
    assert answered["usage"]["prompt_tokens_details"]["cached_tokens"] >= before - 1
    assert cairn.get(f"/v1/sessions/{session}").json()["tokens"] == before
    assert chat(cairn, session)["choices"] == answered["choices"]


def test_the_header_names_the_session_too(cairn: httpx.Client) -> None:
    session = create(cairn)
    header = {"x-session-id": session}
    response = cairn.post("/v1/chat/completions", json=question(None), headers=header)
    assert response.headers["x-session-id"] == session
    assert cairn.get(f"/v1/sessions/{session}").json()["tokens"] > 0
    assert cairn.post("/v1/chat/completions", json=question("another"), headers=header).status_code == 400


def test_completions_continue_a_session(cairn: httpx.Client) -> None:
    session = create(cairn)
    append(cairn, session, TEXT)
    asked = {"prompt": "Once", "session_id": session, "temperature": 0, "max_tokens": 4}
    usage = cairn.post("/v1/completions", json=asked).json()["usage"]
    assert usage["prompt_tokens"] == count(cairn, TEXT) + count(cairn, "Once")


def test_provenance_in_a_session_quotes_its_text(cairn: httpx.Client, events: Events) -> None:
    session = create(cairn)
    document = TEXT + "The pass key for Lisbon is 71432. Remember it. " + TEXT
    append(cairn, session, document)
    asked = question(session, stream=True, retrieval={"provenance": True, "passages": 4})
    told = events(cairn.post("/v1/chat/completions", json=asked))
    [retrieval] = [chunk["retrieval"] for chunk in told if "retrieval" in chunk]
    assert told[-1]["retrieval"] == retrieval
    assert retrieval["passages"]
    for passage in retrieval["passages"]:
        shown = document[passage["start_char"] : passage["end_char"]]
        assert passage["text"].startswith(shown)
        assert shown


def test_a_busy_session_is_refused(cairn: httpx.Client) -> None:
    session = create(cairn)
    asked = question(session, "Tell me all.", stream=True, max_tokens=2000, ignore_eos=True)
    with cairn.stream("POST", "/v1/chat/completions", json=asked) as stream:
        lines = stream.iter_lines()  # dropping it would close the stream
        next(lines)
        assert cairn.get(f"/v1/sessions/{session}").json()["busy"]
        for refused in (
            cairn.post("/v1/chat/completions", json=question(session)),
            cairn.post(f"/v1/sessions/{session}/fork"),
            cairn.delete(f"/v1/sessions/{session}"),
        ):
            assert refused.status_code == 409, refused.text
            assert refused.json()["error"]["code"] == "session_busy"


def test_two_sessions_at_once_give_what_each_gives_alone(cairn: httpx.Client, events: Events) -> None:
    def stream(session: str) -> str:
        asked = question(session, stream=True, max_tokens=24, ignore_eos=True)
        told = events(cairn.post("/v1/chat/completions", json=asked))
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in told)

    sessions = [create(cairn) for _ in range(2)]
    for session, key in zip(sessions, ("71432", "90210"), strict=True):
        append(cairn, session, f"{TEXT}The pass key for Lisbon is {key}. Remember it. {TEXT}")
    forks = [str(cairn.post(f"/v1/sessions/{session}/fork").json()["id"]) for session in sessions]
    alone = [stream(session) for session in sessions]
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(stream, forks)) == alone
