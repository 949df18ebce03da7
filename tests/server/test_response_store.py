"""Which responses are kept, which are hidden, and which sessions nobody needs any more."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from engine import StoreError
from server.responses.store import FILE, MIGRATIONS, ResponseStore, Stored


def store(folder: Path | None = None, most: int = 100, most_bytes: int = 1 << 30) -> ResponseStore:
    return ResponseStore(folder, most, most_bytes)


def made(id: str, session: str | None, tokens: int = 1, previous: str | None = None, **more: Any) -> Stored:
    facts: dict[str, Any] = {
        "tenant": "a",
        "digest": b"",
        "owned": True,
        "whole": True,
        "body": {"id": id},
        "items": [],
    }
    return Stored(id=id, session=session, tokens=tokens, previous=previous, **{**facts, **more})


def test_a_response_belongs_to_its_tenant() -> None:
    kept, response = store(), made("r", "s", items=[{"id": "i"}])
    kept.put(response)
    assert kept.get("r", "a") == response
    assert kept.get("r", "b") is None
    assert kept.delete("r", "b") is None
    assert kept.delete("r", "a") == ["s"]
    assert kept.get("r", "a") is None


def test_the_latest_takes_the_session_along() -> None:
    kept = store()
    kept.put(made("r1", "s1", 10))
    assert kept.put(made("r2", "s2", 20, "r1"), replaces="s1") == ["s1"]
    assert kept.put(made("r3", "s3", 30, "r2"), replaces="s2") == ["s2"]
    for name in ("r1", "r2", "r3"):
        found = kept.get(name, "a")
        assert found is not None
        assert found.session == "s3"
    assert kept.put(made("r4", "s4", 25, "r2"), replaces="s3") == [], "r3 stands in it, and r4 does not go on from r3"
    assert kept.delete("r3", "a") == [], "r1 and r2 are found there"


def test_a_session_goes_with_its_last_response() -> None:
    kept = store()
    kept.put(made("r1", "s1", 10))
    kept.put(made("r2", "s2", 20, "r1"), replaces="s1")
    kept.put(made("own", "mine", owned=False))
    assert kept.delete("r2", "a") == []
    assert kept.delete("r1", "a") == ["s2"]
    assert kept.delete("own", "a") == [], "it is the caller's"


def test_what_a_later_one_goes_on_from_stays_hidden(tmp_path: Path) -> None:
    kept = store(tmp_path)
    for number in range(1, 5):
        kept.put(made(f"r{number}", f"s{number}", number, f"r{number - 1}" if number > 1 else None))
    for name in ("r1", "r2", "r3"):
        kept.delete(name, "a")
    last = kept.get("r4", "a")
    assert last is not None
    assert [each.id for each in kept.chain(last)] == ["r1", "r2", "r3", "r4"]
    assert kept.get("r3", "a") is None
    kept.delete("r4", "a")
    kept.close()
    with sqlite3.connect(tmp_path / FILE) as file:
        assert file.execute("SELECT count(*) FROM responses").fetchone() == (0,)


def test_the_oldest_of_a_tenant_go_first() -> None:
    kept = store(most=2)
    kept.put(made("other", "so", tenant="b"))
    gone = [kept.put(made(f"r{number}", f"s{number}")) for number in range(4)]
    assert gone == [[], [], ["s0"], ["s1"]]
    assert kept.get("other", "b") is not None


def test_their_bytes_are_bounded_and_the_newest_stays() -> None:
    kept = store(most_bytes=1000)
    big = [{"id": "i", "text": "x" * 700}]
    assert kept.put(made("r0", "s0", items=big)) == []
    assert kept.put(made("r1", "s1", items=big)) == ["s0"]
    assert kept.put(made("r2", "s2", items=[*big, *big])) == ["s1"]
    assert kept.get("r2", "a") is not None


def test_a_file_is_there_again(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.put(made("r", "s", 3, digest=b"\x00\xff"))
    first.close()
    assert store(tmp_path).get("r", "a") == made("r", "s", 3, digest=b"\x00\xff")


def test_a_file_that_is_none_of_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match=FILE):
        store(tmp_path)


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    store(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as file:
        file.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StoreError, match="newer"):
        store(tmp_path)
