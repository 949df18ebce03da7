"""Turns over HTTP, and taking them back."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.test_sessions import TEXT, append, chat, create

FACT = "The pass key for Lisbon is 71432. Remember it. "


def turns_of(client: httpx.Client, session: str) -> list[dict[str, int]]:
    told = client.get(f"/v1/sessions/{session}/turns").json()
    assert told["object"] == "list"
    data: list[dict[str, int]] = told["data"]
    return data


def test_what_was_asked_is_listed_taken_back_and_asked_again(cairn: httpx.Client) -> None:
    session = create(cairn)
    assert turns_of(cairn, session) == []
    document = append(cairn, session, TEXT + FACT + TEXT)["tokens"]
    answers = [chat(cairn, session) for _ in range(2)]
    turns = turns_of(cairn, session)
    ends = [document, *(answer["usage"]["total_tokens"] for answer in answers)]
    given = [document, *(answer["usage"]["prompt_tokens"] for answer in answers)]
    assert turns == [
        {"index": index, "start_token": start, "answer_token": answer, "end_token": end}
        for index, (start, answer, end) in enumerate(zip([0, *ends], given, ends, strict=False))
    ]
    fork = cairn.post(f"/v1/sessions/{session}/fork").json()["id"]
    rewound = cairn.post(f"/v1/sessions/{session}/rewind", json={"turn": 1})
    assert rewound.status_code == 200
    assert rewound.headers["x-session-id"] == session
    assert (rewound.json()["id"], rewound.json()["tokens"]) == (session, document)
    assert turns_of(cairn, session) == turns[:1]
    assert turns_of(cairn, fork) == turns
    assert chat(cairn, session)["choices"] == answers[0]["choices"]
    assert cairn.post(f"/v1/sessions/{session}/rewind", json={"tokens": 7}).json()["tokens"] == 7


@pytest.mark.parametrize(("body", "named"), [
    ({}, "turn"),
    ({"turn": 0, "tokens": 0}, "turn"),
    ({"turn": -1}, "turn"),
    ({"turn": 3}, "turn"),
    ({"tokens": 10_000}, "tokens"),
    ({"tokens": "3"}, "tokens"),
    ({"tokens": 0, "more": 1}, "more"),
])  # fmt: skip
def test_what_makes_no_sense_is_named(cairn: httpx.Client, body: dict[str, Any], named: str) -> None:
    session = create(cairn)
    refused = cairn.post(f"/v1/sessions/{session}/rewind", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, named)


def test_a_busy_or_unknown_session_is_refused(cairn: httpx.Client) -> None:
    session = create(cairn)
    asked = {"prompt": "a", "session_id": session, "stream": True, "max_tokens": 2000, "ignore_eos": True}
    with cairn.stream("POST", "/v1/completions", json=asked) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert len(turns_of(cairn, session)) == 1
        assert cairn.post(f"/v1/sessions/{session}/rewind", json={"turn": 0}).status_code == 409
    assert cairn.post("/v1/sessions/unknown/rewind", json={"turn": 0}).status_code == 404
    assert cairn.get("/v1/sessions/unknown/turns").status_code == 404
