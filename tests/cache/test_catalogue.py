"""The catalogue: the same as a dict whatever the order of calls, and nothing half done whatever goes wrong."""

from __future__ import annotations

import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache import catalogue as module
from cache.catalogue import COLUMNS, MIGRATIONS, Catalogue, SessionRecord
from cache.errors import CacheError, StoreError
from cache.readings import Run
from cache.turns import Turn

MODEL = b"model"
NAMES = st.sampled_from("abcd")
TEXTS = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=12)
SLOTS = st.integers(0, 5)
HASHES = st.binary(min_size=1, max_size=1)


def record(id: str = "s", created: float = 0.0, parent: str | None = None) -> SessionRecord:
    return SessionRecord(id, "tenant", MODEL, created, created, parent)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalogue.db"


@pytest.fixture
def catalogue(path: Path) -> Iterator[Catalogue]:
    catalogue = Catalogue(path)
    yield catalogue
    catalogue.close()


@contextmanager
def opened(path: Path, read_only: bool = False) -> Iterator[Catalogue]:
    catalogue = Catalogue(path, read_only=read_only)
    try:
        yield catalogue
    finally:
        catalogue.close()


@contextmanager
def plain(path: Path) -> Iterator[sqlite3.Connection]:
    """The file without a catalogue around it and without its rules."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL_CHUNK", 4)


def chunks(path: Path, session: str = "s") -> list[tuple[int, int]]:
    """Start and number of tokens of each stored chunk."""
    with plain(path) as connection:
        query = "SELECT start, length(tokens) / 4 FROM chunks WHERE session = ? ORDER BY start"
        return connection.execute(query, (session,)).fetchall()


class Beside(RuleBasedStateMachine):
    """A catalogue beside dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.small = mock.patch.object(module, "SMALL_CHUNK", 8)
        self.small.start()
        self.catalogue = Catalogue(Path(self.folder.name, "file"))
        self.records: dict[str, SessionRecord] = {}
        self.texts: dict[str, list[int]] = {}
        self.turns: dict[str, list[Turn]] = {}
        self.runs: dict[str, list[Run]] = {}
        self.slots: dict[bytes, dict[int, bytes]] = {b"x": {}, b"y": {}}
        self.clock = 0

    def teardown(self) -> None:
        self.catalogue.close()
        self.small.stop()
        self.folder.cleanup()

    def new_record(self, name: str, parent: str | None = None) -> SessionRecord:
        self.clock += 1
        return SessionRecord(name, f"of {name}", b"\0\xff", -self.clock, self.clock, parent, self.clock % 2 == 0)

    @rule(name=NAMES)
    def create(self, name: str) -> None:
        new = self.new_record(name)
        if name in self.records:
            with pytest.raises(StoreError, match="UNIQUE"):
                self.catalogue.create(new)
        else:
            self.catalogue.create(new)
            self.records[name], self.texts[name], self.turns[name], self.runs[name] = new, [], [], []

    @rule(name=NAMES, text=TEXTS, times=st.integers(1, 3))
    def append(self, name: str, text: list[int], times: int) -> None:
        for _ in range(times):
            start = len(self.texts.get(name, ()))
            if name not in self.records:
                with pytest.raises(ValueError):
                    self.catalogue.append(name, start, text)
            else:
                self.catalogue.append(name, start, text)
                self.texts[name] += text

    @rule(name=NAMES, parent=NAMES, share=st.floats(0, 1.1))
    def fork(self, name: str, parent: str, share: float) -> None:
        text = self.texts.get(parent, [])
        tokens = round(share * len(text))
        new = self.new_record(name, parent)
        if name in self.records or tokens > len(text):
            with pytest.raises((ValueError, StoreError)):
                self.catalogue.fork(new, parent, tokens)
        else:
            self.catalogue.fork(new, parent, tokens)
            self.records[name], self.texts[name] = new, text[:tokens]
            self.turns[name] = self.turns_within(parent, tokens)
            self.runs[name] = [run for run in self.runs.get(parent, []) if run.start < tokens]

    @rule(name=NAMES, text=TEXTS.filter(bool), raised=st.none() | st.integers(0, 9), oldest=st.integers(0, 2))
    def turn(self, name: str, text: list[int], raised: int | None, oldest: int) -> None:
        if name in self.records:
            start, turns = len(self.texts[name]), self.turns[name]
            turn = Turn(turns[-1].index + 1 if turns else 0, start, start + len(text), raised)
            self.catalogue.append(name, start, text)
            self.catalogue.add_turns(name, [replace(turn, answer=0)], 0)
            self.catalogue.add_turns(name, iter([turn]), oldest)
            self.texts[name] += text
            self.turns[name] = [each for each in (*turns, turn) if each.index >= oldest]

    @rule(name=NAMES, text=TEXTS.filter(bool), fetch=st.integers(-2, 9), top_p=st.sampled_from([0.0, 0.9]))
    def read_otherwise(self, name: str, text: list[int], fetch: int, top_p: float) -> None:
        if name in self.records:
            run = Run(len(self.texts[name]), fetch, top_p)
            self.catalogue.append(name, run.start, text, [run])
            self.texts[name] += text
            self.runs[name].append(run)

    @rule(name=NAMES, share=st.floats(0, 1.1))
    def cut(self, name: str, share: float) -> None:
        keep = round(share * len(self.texts.get(name, [])))
        self.catalogue.cut(name, keep)
        if name in self.records:
            del self.texts[name][keep:]
            self.turns[name] = self.turns_within(name, keep)
            self.runs[name] = [run for run in self.runs[name] if run.start < keep]

    def turns_within(self, name: str, tokens: int) -> list[Turn]:
        kept = [turn for turn in self.turns.get(name, []) if turn.start < tokens]
        return [replace(turn, answer=min(turn.answer, tokens)) for turn in kept]

    @rule(
        name=NAMES,
        used=st.floats(0, 9),
        pinned=st.booleans(),
        expires=st.none() | st.floats(0, 9),
        heads=st.none() | st.integers(0, 99),
    )
    def update(self, name: str, used: float, pinned: bool, expires: float | None, heads: int | None) -> None:
        self.catalogue.update(name, used=used, pinned=pinned)
        self.catalogue.update(name, expires=expires, blocks_per_head=heads)
        if name in self.records:
            self.records[name] = replace(
                self.records[name], used=used, pinned=pinned, expires=expires, blocks_per_head=heads
            )

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        self.catalogue.delete(name)
        self.records.pop(name, None)
        self.texts.pop(name, None)
        self.turns.pop(name, None)
        self.runs.pop(name, None)

    @rule(of=st.sampled_from([b"x", b"y"]), blocks=st.lists(st.tuples(SLOTS, HASHES), max_size=6))
    def add_blocks(self, of: bytes, blocks: list[tuple[int, bytes]]) -> None:
        self.catalogue.add_blocks(of, iter(blocks))
        self.slots[of] |= dict(blocks)

    @rule(of=st.sampled_from([b"x", b"y"]), slots=st.lists(SLOTS, max_size=3))
    def remove_blocks(self, of: bytes, slots: list[int]) -> None:
        self.catalogue.remove_blocks(of, iter(slots))
        for slot in slots:
            self.slots[of].pop(slot, None)

    @rule(name=NAMES, text=TEXTS, part=st.booleans())
    def give_up(self, name: str, text: list[int], part: bool) -> None:
        """A transaction that fails, or only a part of one that does not."""
        start = len(self.texts.get(name, ()))
        with self.catalogue.transaction() if part else pytest.raises(ZeroDivisionError):  # noqa: SIM117
            with pytest.raises(ZeroDivisionError) if part else self.catalogue.transaction():
                with self.catalogue.transaction():
                    if name in self.records:
                        self.catalogue.append(name, start, text)
                    self.catalogue.fork(record("new"), name, 0)
                    self.catalogue.delete(name)
                    self.catalogue.add_blocks(b"x", [(77, b"new")])
                    assert self.catalogue.blocks(b"x")[b"new"] == 77
                    raise ZeroDivisionError

    @rule()
    def reopen(self) -> None:
        path = Path(self.folder.name, "file")
        self.catalogue.close()
        with opened(path, read_only=True) as reading:
            assert len(reading.sessions()) == len(self.records)
        self.catalogue = Catalogue(path)

    @invariant()
    def agree(self) -> None:
        assert self.catalogue.sessions() == sorted(self.records.values(), key=lambda record: record.created)
        for name in "abcd":
            text = self.texts.get(name, [])
            assert self.catalogue.length(name) == len(text)
            assert self.catalogue.tokens(name).tolist() == text
            assert self.catalogue.turns(name) == self.turns.get(name, [])
            assert self.catalogue.readings(name) == self.runs.get(name, [])
        for of, slots in self.slots.items():
            assert self.catalogue.blocks(of) == {hash: slot for slot, hash in sorted(slots.items())}
        assert self.catalogue.check() == []


TestBeside = Beside.TestCase
TestBeside.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_a_record_comes_back_as_it_was(catalogue: Catalogue) -> None:
    full = SessionRecord("é", "t", bytes(range(256)), 1.25, 2.5, "p", True, 1e10, 7)
    for one in (full, record()):
        catalogue.create(one)
    assert catalogue.sessions() == [record(), full]
    assert catalogue.sessions()[1].pinned is True
    assert tuple(COLUMNS.split(", ")) == tuple(field.name for field in fields(SessionRecord))


def test_an_append_starts_where_the_text_ends(catalogue: Catalogue) -> None:
    catalogue.create(record())
    catalogue.append("s", 0, range(5))
    for start in (0, 4, 6):
        with pytest.raises(ValueError, match="5 tokens"):
            catalogue.append("s", start, [1])
    with pytest.raises(ValueError):
        catalogue.append("unknown", 0, [1])
    assert catalogue.tokens("s").tolist() == list(range(5))


def test_decoding_does_not_make_a_row_per_token(path: Path, catalogue: Catalogue, small_chunks: None) -> None:
    catalogue.create(record())
    for start in range(10):
        catalogue.append("s", start, [start])
    catalogue.append("s", 10, range(10, 100))
    catalogue.append("s", 100, [])
    catalogue.append("s", 100, [100])
    assert chunks(path) == [(0, 4), (4, 4), (8, 92), (100, 1)]
    assert catalogue.tokens("s").tolist() == list(range(101))


def test_a_fork_copies_across_chunks_and_is_on_its_own(path: Path, catalogue: Catalogue, small_chunks: None) -> None:
    catalogue.create(record())
    text = list(range(1, 22))
    for start in range(0, 21, 7):
        catalogue.append("s", start, text[start : start + 7])
    for tokens in (0, 1, 6, 7, 8, 14, 20, 21):
        fork = f"fork of {tokens}"
        catalogue.fork(record(fork, parent="s"), "s", tokens)
        catalogue.append(fork, tokens, [99])
        assert catalogue.tokens(fork).tolist() == text[:tokens] + [99]
    for tokens in (-1, 22):
        with pytest.raises(ValueError):
            catalogue.fork(record("other"), "s", tokens)
    catalogue.delete("s")
    assert catalogue.tokens("fork of 8").tolist() == text[:8] + [99]
    assert catalogue.sessions()[-1].parent == "s"
    assert chunks(path) == []


def test_only_what_may_change_can_be_changed(catalogue: Catalogue) -> None:
    catalogue.create(record())
    for name in ("id", "length", "used = 1, pinned"):
        with pytest.raises(TypeError):
            catalogue.update("s", **{name: 1})
    catalogue.update("s")
    assert catalogue.sessions() == [record()]


def test_the_file_is_for_its_owner_in_wal_mode(path: Path, catalogue: Catalogue) -> None:
    catalogue.create(record())
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file
    with plain(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("name", ["a?mode=memory", "b#c", "d%20e", "file:f", ":memory:", "g&immutable=1 h"])
def test_any_path_is_only_a_path(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(Path(name)) as catalogue:
        catalogue.create(record())
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with opened(Path(name), read_only=True) as catalogue:
        assert catalogue.sessions() == [record()]
        with pytest.raises(StoreError, match="readonly"):
            catalogue.delete("s")
        assert catalogue.sessions() == [record()]


def run(path: Path, body: str) -> int:
    """Run code with a catalogue in a process of its own, without the imports of the whole package."""
    start = f"""
    import os, signal, sys, types
    sys.modules["cache"] = package = types.ModuleType("cache")
    package.__path__ = [{str(Path(module.__file__).parent)!r}]
    from pathlib import Path
    from cache.catalogue import Catalogue, SessionRecord
    catalogue = Catalogue(Path({str(path)!r}))
    """
    return subprocess.run([sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(body)]).returncode


def test_a_killed_process_keeps_what_was_committed_and_nothing_else(path: Path) -> None:
    killed = """
    catalogue.create(SessionRecord("s", "tenant", b"model", 0.0, 0.0))
    catalogue.append("s", 0, range(9000))
    catalogue.add_blocks(b"model", [(3, b"hash")])
    os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(path, killed) == -signal.SIGKILL
    died = """
    with catalogue.transaction():
        catalogue.append("s", 9000, range(300000))
        catalogue.create(SessionRecord("t", "tenant", b"model", 0.0, 0.0))
        catalogue.remove_blocks(b"model", [3])
        os._exit(7)
    """
    assert run(path, died) == 7
    with opened(path) as catalogue:
        assert catalogue.check() == []
        assert catalogue.sessions() == [record()]
        assert catalogue.tokens("s").tolist() == list(range(9000))
        assert catalogue.blocks(MODEL) == {b"hash": 3}


def test_files_that_are_no_catalogue(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"no database at all " * 999)
    for path in (garbage, tmp_path, tmp_path / "missing" / "file"):
        for read_only in (False, True):
            with pytest.raises(StoreError, match=re.escape(str(path))):
                Catalogue(path, read_only=read_only)
    assert issubclass(StoreError, CacheError)
    with pytest.raises(StoreError):
        Catalogue(tmp_path / "missing", read_only=True)
    assert not (tmp_path / "missing").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anyway")
def test_files_that_may_not_be_written(path: Path) -> None:
    with opened(path):
        pass
    path.chmod(0o400)
    path.parent.chmod(0o500)
    with pytest.raises(StoreError):
        Catalogue(path)
    with pytest.raises(StoreError):
        Catalogue(path.parent / "other")
    path.parent.chmod(0o700)


def test_versions(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as catalogue:
        catalogue.create(record())
        catalogue.append("s", 0, range(5))
    more = "ALTER TABLE sessions ADD COLUMN title TEXT;\n CREATE TABLE extra (x);\n INSERT INTO extra VALUES (1);"
    wrong = "CREATE TABLE other (x);\n INSERT INTO nowhere VALUES (1);"
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, more, wrong))
    with pytest.raises(StoreError, match="for writing once"), opened(path, read_only=True):
        pass
    with pytest.raises(StoreError, match="nowhere"), opened(path):
        pass
    with plain(path) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
    assert "extra" in tables
    assert "other" not in tables, "a migration that fails leaves nothing"
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, more))
    for _ in range(2):
        with opened(path) as catalogue:
            assert catalogue.sessions() == [record()]
            assert catalogue.tokens("s").tolist() == list(range(5))
            catalogue.append("s", 5, [])
    monkeypatch.undo()
    for read_only in (False, True):
        with pytest.raises(StoreError, match="newer server"), opened(path, read_only):
            pass


DAMAGES = {
    "a gap": ("DELETE FROM chunks WHERE start = 10", 10),
    "no start": ("DELETE FROM chunks WHERE start = 0", 0),
    "no end": ("DELETE FROM chunks WHERE start = 20", 20),
    "an overlap": ("UPDATE chunks SET start = 5 WHERE start = 10", 10),
    "too long": ("UPDATE sessions SET length = 31 WHERE id = 's'", 30),
    "too short": ("UPDATE sessions SET length = 29 WHERE id = 's'", 30),
    "nothing": ("DELETE FROM chunks", 0),
}


@pytest.mark.parametrize(("sql", "kept"), DAMAGES.values(), ids=DAMAGES)
def test_damage_to_a_text_is_found_and_mended(path: Path, small_chunks: None, sql: str, kept: int) -> None:
    with opened(path) as catalogue:
        for session in ("s", "empty"):
            catalogue.create(record(session))
        for start in (0, 10, 20):
            catalogue.append("s", start, range(start, start + 10))
        assert catalogue.check() == []
        assert catalogue.repair() == []
    with plain(path) as connection:
        connection.execute(sql)
    with opened(path) as catalogue:
        assert any("session s " in problem for problem in catalogue.check())
        assert not any("empty" in problem for problem in catalogue.check())
        with pytest.raises(StoreError, match="repair"):
            catalogue.tokens("s")
        assert any("session s " in deed for deed in catalogue.repair())
        assert catalogue.check() == []
        assert catalogue.tokens("s").tolist() == list(range(kept))
        catalogue.append("s", kept, [5])
        assert catalogue.check() == []


def test_an_append_does_not_hide_a_missing_end(path: Path, catalogue: Catalogue) -> None:
    catalogue.create(record())
    catalogue.append("s", 0, range(10))
    with plain(path) as connection:
        connection.execute("UPDATE sessions SET length = 20")
    catalogue.append("s", 20, [7])
    assert catalogue.check()
    catalogue.repair()
    assert catalogue.tokens("s").tolist() == list(range(10))


def test_a_reading_behind_the_text_is_found_and_deleted(path: Path, catalogue: Catalogue) -> None:
    catalogue.create(record())
    catalogue.append("s", 0, range(10), [Run(4, 3, 0.0)])
    with plain(path) as connection:
        connection.execute("INSERT INTO readings VALUES ('s', 10, 3, 0), ('gone', 0, 3, 0)")
    assert len(catalogue.check()) == 2
    assert len(catalogue.repair()) == 2
    assert catalogue.check() == []
    assert catalogue.readings("s") == [Run(4, 3, 0.0)]
    catalogue.delete("s")
    with plain(path) as connection:
        assert connection.execute("SELECT count(*) FROM readings").fetchone() == (0,)


def test_text_without_a_session_is_found_and_deleted(path: Path, catalogue: Catalogue) -> None:
    catalogue.create(record())
    catalogue.append("s", 0, range(10))
    with plain(path) as connection:
        connection.execute("INSERT INTO chunks VALUES ('gone', 0, x'01000000')")
    assert any("session gone " in problem for problem in catalogue.check())
    assert len(catalogue.repair()) == 1
    assert catalogue.check() == []
    assert chunks(path, "gone") == []
    assert catalogue.length("s") == 10


def test_a_broken_index_is_built_anew_and_a_broken_page_is_told(path: Path) -> None:
    with opened(path) as catalogue:
        catalogue.create(record())
        catalogue.append("s", 0, range(5000))
    with plain(path) as connection:
        pages = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name IN ('sqlite_autoindex_chunks_1', 'chunks') ORDER BY type"
        ).fetchall()
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    for (page,), mends in zip(pages, (True, False), strict=True):
        with path.open("r+b") as file:
            file.seek((page - 1) * size)
            file.write((b"\x0a" if mends else b"\xee") + bytes(4) + size.to_bytes(2, "big") + bytes(size - 7))
        with opened(path) as catalogue:
            assert catalogue.check()
            if mends:
                assert any("SQLite" in deed for deed in catalogue.repair())
                assert catalogue.check() == []
                assert catalogue.tokens("s").tolist() == list(range(5000))
            else:
                with pytest.raises(StoreError):
                    catalogue.repair()


def test_threads_append_at_once(catalogue: Catalogue) -> None:
    failures: list[Exception] = []

    def work(name: str) -> None:
        try:
            catalogue.create(record(name))
            for start in range(0, 60, 3):
                with catalogue.transaction():
                    catalogue.append(name, start, range(start, start + 2))
                    catalogue.append(name, start + 2, [start + 2])
                with suppress(ZeroDivisionError), catalogue.transaction():
                    catalogue.append(name, start + 3, [0])
                    raise ZeroDivisionError
                assert catalogue.length(name) == start + 3
                catalogue.add_blocks(MODEL, [(start, name.encode())])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"session {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for session in catalogue.sessions():
        assert catalogue.tokens(session.id).tolist() == list(range(60))
    assert catalogue.check() == []


def test_another_thread_does_not_see_an_open_transaction(catalogue: Catalogue) -> None:
    catalogue.create(record())
    seen: list[int] = []
    reader = threading.Thread(target=lambda: seen.append(catalogue.length("s")))
    with suppress(ZeroDivisionError), catalogue.transaction():
        catalogue.append("s", 0, [1])
        reader.start()
        reader.join(0.05)
        raise ZeroDivisionError
    reader.join()
    assert seen == [0]


def test_a_full_disk_undoes_the_call_and_later_it_works_again(catalogue: Catalogue) -> None:
    catalogue.create(record())
    catalogue.append("s", 0, range(100))
    pages = catalogue._db.execute("PRAGMA page_count").fetchone()[0]
    catalogue._db.execute(f"PRAGMA max_page_count = {pages + 10}")
    with pytest.raises(StoreError, match=r"full.*room"):
        catalogue.append("s", 100, range(50_000))
    with pytest.raises(StoreError, match="full"):
        catalogue.add_blocks(MODEL, ((slot, bytes(32)) for slot in range(9999)))
    assert catalogue.tokens("s").tolist() == list(range(100))
    assert catalogue.blocks(MODEL) == {}
    catalogue.append("s", 100, [5])
    catalogue._db.execute("PRAGMA max_page_count = 1000000")
    catalogue.append("s", 101, range(50_000))
    assert catalogue.length("s") == 50_101
    assert catalogue.check() == []


def test_a_disk_that_refuses_to_write_is_told_and_forgiven(path: Path, catalogue: Catalogue) -> None:
    catalogue.create(record())
    catalogue.append("s", 0, range(100))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        for attempt in (100, 200):
            with pytest.raises(StoreError):
                catalogue.append("s", 100, range(attempt * 5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    catalogue.append("s", 100, range(100, 1_000))
    with opened(path) as again:
        assert again.tokens("s").tolist() == list(range(1_000))
        assert again.check() == []


def test_a_transaction_that_sqlite_gave_up_takes_nothing_more(catalogue: Catalogue) -> None:
    catalogue.create(record())

    def fill() -> None:
        with catalogue.transaction():
            catalogue.append("s", 0, [1])
            with pytest.raises(StoreError, match="full"):  # which makes SQLite undo the whole transaction
                catalogue.append("s", 1, range(50_000))
            with pytest.raises(StoreError, match="has failed"):
                catalogue.append("s", 0, [2])
            with pytest.raises(StoreError, match="has failed"):
                catalogue.length("s")

    catalogue._db.execute("PRAGMA max_page_count = 1")  # SQLite takes that for the present size
    with pytest.raises(StoreError, match="has failed"):
        fill()
    assert catalogue.length("s") == 0
    catalogue.append("s", 0, [3])
    assert catalogue.tokens("s").tolist() == [3]


def test_a_folder_that_vanishes_or_changes_is_noticed(path: Path, catalogue: Catalogue) -> None:
    catalogue.create(record())
    moved = path.parent.rename(path.parent.with_name("moved"))
    with pytest.raises(StoreError, match="No such file"):
        catalogue.append("s", 0, [1])
    path.parent.mkdir()
    path.touch()
    with pytest.raises(StoreError, match="replaced"):
        catalogue.append("s", 0, [1])
    path.unlink()
    path.parent.rmdir()
    moved.rename(path.parent)
    catalogue.append("s", 0, [1])
    assert catalogue.length("s") == 1


def test_another_writer_is_waited_for_and_then_told(path: Path, catalogue: Catalogue) -> None:
    catalogue.create(record())
    catalogue._db.execute("PRAGMA busy_timeout = 20")
    with opened(path) as other:
        with other.transaction():
            with pytest.raises(StoreError, match="locked"):
                catalogue.append("s", 0, [1])
            assert catalogue.length("s") == 0
        catalogue.append("s", 0, [1])
        assert other.length("s") == 1


def test_a_closed_catalogue_says_so(path: Path) -> None:
    catalogue = Catalogue(path)
    catalogue.close()
    catalogue.close()
    with pytest.raises(StoreError, match="closed"):
        catalogue.sessions()
