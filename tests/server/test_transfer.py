"""Sessions as files, from one server process to another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import CAIRN, Start
from tests.server.test_history import FACT
from tests.server.test_sessions import TEXT, append, chat, create

LIMIT = 24 << 20


@pytest.fixture(scope="module")
def other(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Path]]:
    """A server with a store of its own, and what it keeps there."""
    store = tmp_path_factory.mktemp("other")
    (store / "incoming").mkdir()
    (store / "incoming" / "left-by-a-crash.cairn").write_bytes(b"half a file")
    with start(CAIRN, disk_kv_path=store, max_import_bytes=LIMIT, max_transfers=1) as (client, _):
        yield client, store


@pytest.fixture(scope="module")
def told(cairn: httpx.Client) -> bytes:
    """The file of a session that was told a fact and asked for it."""
    session = create(cairn)
    append(cairn, session, TEXT + FACT + TEXT * 3)
    chat(cairn, session)
    return export(cairn, session)


def export(client: httpx.Client, session: str, **params: Any) -> bytes:
    response = client.get(f"/v1/sessions/{session}/export", params=params)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/vnd.cairn.session"
    assert response.headers["content-disposition"] == f'attachment; filename="{session}.cairn"'
    assert len(response.content) == int(response.headers["content-length"])
    return response.content


def take(client: httpx.Client, content: bytes, **params: Any) -> dict[str, Any]:
    response = client.post("/v1/sessions/import", content=content, params=params)
    assert response.status_code == 201, response.text
    assert response.headers["x-session-id"] == response.json()["id"]
    told: dict[str, Any] = response.json()
    return told


def test_another_server_answers_from_what_this_one_has_read(
    cairn: httpx.Client, other: tuple[httpx.Client, Path]
) -> None:
    session = create(cairn)
    append(cairn, session, TEXT + FACT + TEXT * 3)
    chat(cairn, session, "Who are you?")
    content, short = export(cairn, session), export(cairn, session, kv=False)
    text = cairn.get(f"/v1/sessions/{session}/text").json()["text"]
    turns = cairn.get(f"/v1/sessions/{session}/turns").json()
    expected = chat(cairn, session, max_tokens=16)
    cairn.delete(f"/v1/sessions/{session}")
    client, store = other
    taken = take(client, content)
    assert taken["tokens"] - 16 <= taken["restored_tokens"] <= taken["tokens"]
    assert client.get(f"/v1/sessions/{taken['id']}/text").json()["text"] == text
    assert client.get(f"/v1/sessions/{taken['id']}/turns").json() == turns
    answered = chat(client, taken["id"], max_tokens=16)
    assert "71432" in answered["choices"][0]["message"]["content"]
    assert answered["choices"] == expected["choices"]
    assert answered["usage"]["prompt_tokens_details"]["cached_tokens"] == taken["restored_tokens"]
    assert len(short) < len(content) / 100
    again = take(client, short)
    assert again["restored_tokens"] == 0
    assert chat(client, again["id"], max_tokens=16)["choices"] == expected["choices"]
    assert list((store / "incoming").iterdir()) == [], "no file is left over"


def test_a_model_with_the_same_vocabulary_takes_the_text(tiny: httpx.Client, told: bytes) -> None:
    taken = take(tiny, told)
    assert taken["restored_tokens"] == 0
    assert FACT in tiny.get(f"/v1/sessions/{taken['id']}/text").json()["text"]
    assert chat(tiny, taken["id"])["usage"]["completion_tokens"] > 0


def test_damaged_and_foreign_files_change_nothing(cairn: httpx.Client, told: bytes) -> None:
    before = len(cairn.get("/v1/sessions?limit=100").json()["data"])
    broken = bytearray(told)
    broken[len(told) // 2] ^= 4
    for content, named in ((b"", "safetensors"), (b"no file", "safetensors"), (told[:-1], "safetensors"),
                           (bytes(broken), "checksum")):  # fmt: skip
        refused = cairn.post("/v1/sessions/import", content=content)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["code"] == "invalid_session_file"
        assert named in refused.json()["error"]["message"]
    assert refused.json()["error"]["block"] > 0
    assert len(cairn.get("/v1/sessions?limit=100").json()["data"]) == before
    assert take(cairn, bytes(broken), kv=False)["restored_tokens"] == 0


def test_what_is_too_large_or_too_much_is_refused(other: tuple[httpx.Client, Path], told: bytes) -> None:
    client, _ = other
    refused = client.post("/v1/sessions/import", content=b"\0" * (LIMIT + 1))
    assert (refused.status_code, refused.json()["error"]["limit"]) == (413, LIMIT)
    session = take(client, told)["id"]
    with client.stream("GET", f"/v1/sessions/{session}/export") as stream:
        pieces = stream.iter_bytes(1000)
        next(pieces)
        refused = client.post("/v1/sessions/import", content=told)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_transfers")
        assert refused.headers["retry-after"]
        assert chat(client, session)["usage"]["completion_tokens"] > 0, "the session can go on meanwhile"
        whole = 1000 + sum(len(piece) for piece in pieces)
    assert whole == int(stream.headers["content-length"])
    for _ in range(3):  # one that is left at once gives its place back
        with client.stream("GET", f"/v1/sessions/{session}/export"):
            pass
    while client.get(f"/v1/sessions/{session}/export").status_code == 429:
        pass
    assert client.get("/v1/sessions/unknown/export").status_code == 404


def test_the_same_file_with_the_same_key_makes_one_session(cairn: httpx.Client, told: bytes) -> None:
    def sent(content: bytes, **params: Any) -> httpx.Response:
        key = {"Idempotency-Key": "one-import"}
        return cairn.post("/v1/sessions/import", content=content, params=params, headers=key)

    first, again = sent(told), sent(told)
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert sent(told, kv=False).status_code == 422
    assert sent(told[:-1]).json()["error"]["code"] == "idempotency_key_reused"
