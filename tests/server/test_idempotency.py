"""A request that comes twice is done once: the same key gives the same session."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import idempotency
from server.cli import main
from tests.server.test_durability import refused, served
from tests.server.test_sessions import append, create


def make(client: httpx.Client, key: str, path: str = "", **body: Any) -> httpx.Response:
    return client.post(f"/v1/sessions{path}", json=body, headers={"Idempotency-Key": key})


def of(response: httpx.Response) -> str:
    assert response.status_code == 201, response.text
    assert response.headers["x-session-id"] == response.json()["id"]
    return str(response.json()["id"])


def test_the_same_request_gives_the_same_session(tiny: httpx.Client) -> None:
    first, again = make(tiny, "same", pinned=True), make(tiny, "same", pinned=True)
    assert of(first) == of(again)
    assert again.json() == first.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert of(make(tiny, "another", pinned=True)) != of(first)
    assert create(tiny) != create(tiny)


def test_no_body_and_an_empty_one_are_the_same_request(tiny: httpx.Client) -> None:
    header = {"Idempotency-Key": "empty"}
    assert of(tiny.post("/v1/sessions", headers=header)) == of(make(tiny, "empty"))


def test_a_fork_is_made_once(tiny: httpx.Client) -> None:
    session = create(tiny)
    append(tiny, session, "Some text.")
    forks = {of(make(tiny, "fork", f"/{session}/fork")) for _ in range(3)}
    assert len(forks) == 1
    other = make(tiny, "fork", f"/{create(tiny)}/fork")
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


def test_a_key_stands_for_one_request(tiny: httpx.Client) -> None:
    session = of(make(tiny, "one", ttl_seconds=100))
    for other in (make(tiny, "one", ttl_seconds=200), make(tiny, "one", f"/{session}/fork")):
        assert other.status_code == 422
        assert other.json()["error"]["code"] == "idempotency_key_reused"
        assert other.json()["error"]["param"] == "Idempotency-Key"
    assert of(make(tiny, "one", ttl_seconds=100)) == session


def test_what_failed_is_tried_again(tiny: httpx.Client) -> None:
    assert make(tiny, "failed", "/nobody/fork").status_code == 404
    repeated = make(tiny, "failed", "/nobody/fork")
    assert repeated.status_code == 404
    assert "idempotent-replayed" not in repeated.headers
    assert make(tiny, "failed").status_code == 201


@pytest.mark.parametrize("key", ["", "k" * 256, "tab\there"])
def test_a_key_that_is_none_is_refused(tiny: httpx.Client, key: str) -> None:
    response = make(tiny, key)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "Idempotency-Key"
    assert make(tiny, "k" * 255).status_code == 201


def test_equal_requests_at_the_same_moment_make_one_session(tiny: httpx.Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make(tiny, "moment"), range(16)))
    assert len({of(each) for each in made}) == 1
    assert sum("idempotent-replayed" not in each.headers for each in made) == 1


def test_keys_of_two_tenants_have_nothing_to_do_with_each_other(guarded: httpx.Client) -> None:
    def made(tenant: str) -> str:
        headers = {"Authorization": f"Bearer {tenant}-key", "Idempotency-Key": "shared"}
        session = of(guarded.post("/v1/sessions", headers=headers))
        guarded.delete(f"/v1/sessions/{session}", headers=headers)
        return session

    assert made("first") == made("first") != made("second")


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, Any]:
    return {"disk_kv_path": str(tmp_path / "store"), "disk_kv_bytes": 1 << 28, "kv_bytes": 1 << 26}


def test_a_restart_keeps_the_keys(tiny_folder: Path, kept: dict[str, Any]) -> None:
    with served(tiny_folder, **kept) as client:
        session = of(make(client, "kept"))
        append(client, session, "Some text.")
    file = Path(kept["disk_kv_path"]) / idempotency.FILE
    assert file.stat().st_mode & 0o777 == 0o600
    assert main(["check", kept["disk_kv_path"]]) == 0
    with served(tiny_folder, **kept) as client:
        again = make(client, "kept")
        assert (of(again), again.headers["idempotent-replayed"]) == (session, "true")
        assert make(client, "kept", pinned=True).status_code == 422
        with sqlite3.connect(file) as db:  # a day goes by
            db.execute("UPDATE answers SET created = created - ?", (idempotency.SECONDS,))
        assert of(make(client, "kept", pinned=True)) != session


@pytest.mark.parametrize(("content", "says"), [(b"no database at all" * 99, "move it away"), (None, "use a newer one")])
def test_a_file_that_cannot_be_used_is_named(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, says: str
) -> None:
    file = tmp_path / idempotency.FILE
    if content is None:
        with sqlite3.connect(file) as db:
            db.execute("PRAGMA user_version = 99")
    else:
        file.write_bytes(content)
    line = refused(capsys, "--model", tiny_folder, "--disk-kv-path", tmp_path, "--disk-kv-bytes", "64MiB")
    assert idempotency.FILE in line
    assert says in line


def test_the_oldest_keys_of_a_tenant_make_room(
    tiny_folder: Path, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "MOST", 3)
    with served(tiny_folder, **kept) as client:
        made = {key: of(make(client, key)) for key in "abcd"}
        assert {key: of(make(client, key)) for key in "dcb"} == {key: made[key] for key in "dcb"}
        assert of(make(client, "a")) != made["a"]
