"""ETags: who has read a session's state need not read it again, and nobody changes what has changed meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.test_durability import served
from tests.server.test_sessions import append, chat, create

Change = Callable[[httpx.Client, str, dict[str, str]], httpx.Response]

CHANGES: dict[str, Change] = {
    "append": lambda client, at, headers: client.post(f"{at}/append", json={"text": "More."}, headers=headers),
    "document": lambda client, at, headers: client.post(
        f"{at}/documents", files={"file": ("more.txt", b"More.")}, headers=headers
    ),
    "rewind": lambda client, at, headers: client.post(f"{at}/rewind", json={"tokens": 1}, headers=headers),
    "patch": lambda client, at, headers: client.patch(at, json={"pinned": True}, headers=headers),
    "delete": lambda client, at, headers: client.delete(at, headers=headers),
}


def tag(client: httpx.Client, session: str, path: str = "") -> str:
    response = client.get(f"/v1/sessions/{session}{path}")
    assert response.status_code == 200
    return str(response.headers["etag"])


def test_a_tag_changes_with_the_tokens_and_the_settings_alone(tiny: httpx.Client) -> None:
    session = create(tiny)
    seen = [tag(tiny, session)]
    assert tag(tiny, session) == seen[0]
    for change in (
        lambda: append(tiny, session, "Some text."),
        lambda: append(tiny, session, "Some text."),
        lambda: tiny.patch(f"/v1/sessions/{session}", json={"ttl_seconds": 1000}),
        lambda: tiny.patch(f"/v1/sessions/{session}", json={"pinned": True}),
        lambda: chat(tiny, session),
    ):
        change()
        seen.append(tag(tiny, session))
        assert tag(tiny, session) == seen[-1]
    assert len(set(seen)) == len(seen)
    tiny.post(f"/v1/sessions/{session}/fork")
    assert tag(tiny, session) == seen[-1]
    assert tag(tiny, session, "/text") == seen[-1]


def test_another_text_of_the_same_length_is_another_state(tiny: httpx.Client) -> None:
    session = create(tiny)
    append(tiny, session, "Seven.")
    first = tag(tiny, session)
    assert tiny.post(f"/v1/sessions/{session}/rewind", json={"turn": 0}).status_code == 200
    append(tiny, session, "Seven.".replace("S", "R"))
    assert tag(tiny, session, "/text") != first
    tokens = tiny.get(f"/v1/sessions/{session}").json()["tokens"]
    assert tokens == len(tiny.post("/tokenize", json={"prompt": "Seven."}).json()["tokens"])


@pytest.mark.parametrize("path", ["", "/text", "/text?start_token=0&end_token=1"])
def test_who_knows_the_state_gets_304(tiny: httpx.Client, path: str) -> None:
    session = create(tiny)
    append(tiny, session, "Some text.")
    known = tag(tiny, session, path)
    url = f"/v1/sessions/{session}{path}"
    for header in (known, f'"other", {known}', f"W/{known}", "*"):
        response = tiny.get(url, headers={"If-None-Match": header})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", known)
    assert tiny.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
    append(tiny, session, "More.")
    assert tiny.get(url, headers={"If-None-Match": known}).status_code == 200


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_needs_the_state_that_it_names(tiny: httpx.Client, name: str) -> None:
    session = create(tiny)
    at, old = f"/v1/sessions/{session}", tag(tiny, session)
    append(tiny, session, "Some text.")
    before = tag(tiny, session)
    for header in (old, f"W/{before}", '"other"'):
        refused = CHANGES[name](tiny, at, {"If-Match": header})
        assert refused.status_code == 412, refused.text
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("precondition_failed", "If-Match")
    assert tag(tiny, session) == before
    done = CHANGES[name](tiny, at, {"If-Match": f'"other", {before}'})
    assert done.status_code == 200, done.text
    if name != "delete":
        assert done.headers["etag"] == tag(tiny, session) != before


def test_any_state_will_do_if_the_session_is_there(tiny: httpx.Client) -> None:
    session = create(tiny)
    assert tiny.patch(f"/v1/sessions/{session}", json={}, headers={"If-Match": "*"}).status_code == 200
    assert tiny.patch("/v1/sessions/nobody", json={}, headers={"If-Match": "*"}).status_code == 404


def test_of_those_who_saw_the_same_state_one_may_change_it(tiny: httpx.Client) -> None:
    session = create(tiny)
    known = tag(tiny, session)

    def change(number: int) -> int:
        at = f"/v1/sessions/{session}/append"
        return tiny.post(at, json={"text": f"Number {number}."}, headers={"If-Match": known}).status_code

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(change, range(8)))
    assert sorted(codes) == [200] + [412] * 7
    assert tiny.get(f"/v1/sessions/{session}/text").json()["text"] == f"Number {codes.index(200)}."


def test_a_restart_keeps_the_tag(tiny_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"disk_kv_path": str(tmp_path / "store"), "disk_kv_bytes": 1 << 28, "kv_bytes": 1 << 26}
    with served(tiny_folder, **settings) as client:
        session = create(client)
        append(client, session, "Some text that is kept.")
        chat(client, session)
        known = tag(client, session)
    with served(tiny_folder, **settings) as client:
        assert client.get(f"/v1/sessions/{session}", headers={"If-None-Match": known}).status_code == 304
