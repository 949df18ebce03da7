"""Disks fail, fill up, vanish and forget; the engine answers as before, and what it told is not lost."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cache.archive
import cache.patience
from engine import EngineError, InvalidParameter, OutOfRoom, RetrievalParams
from tests.engine.durable import BLOCKS, Durable, eventually
from tests.models import random_tokens

FIRST, SECOND = random_tokens(90, seed=1), random_tokens(33, seed=2)
ERRORS = {"full": errno.ENOSPC, "broken": errno.EIO}
EXACT = RetrievalParams(exact=True)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a disk that fails."""
    monkeypatch.setattr(cache.archive, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(cache.patience, "PATIENCE", 0.2)


@pytest.fixture
def durable(tmp_path: Path, tiny_folder: Path) -> Iterator[Durable]:
    made = Durable(tiny_folder, tmp_path / "store")
    yield made
    made.close()


def new(durable: Durable, **options: Any) -> str:
    return durable.run.engine.create_session("", **options).id


class Fault:
    """A call that goes wrong: its n-th one, or all while `on`.

    Args:
        real: what is called else
        wrong: takes the arguments of a call that goes wrong
        mine: which calls count
    """

    def __init__(self, real: Callable[..., Any], wrong: Callable[..., Any], mine: Callable[..., bool]) -> None:
        self.real, self.wrong, self.mine = real, wrong, mine
        self.nth: int | None = None
        self.on = False
        self.count = self.failed = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not self.mine(*args):
            return self.real(*args, **options)
        self.count += 1
        if self.on or self.count == self.nth:
            self.failed += 1
            return self.wrong(*args)
        return self.real(*args, **options)


def raising(code: int) -> Callable[..., Any]:
    def wrong(*args: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return wrong


def short_pwrite(handle: int, data: memoryview, place: int, *, real: Any = os.pwrite) -> Any:
    return real(handle, memoryview(data).cast("B")[: max(1, len(data) // 3)], place)


def short_pread(handle: int, size: int, place: int, *, real: Any = os.pread) -> Any:
    return real(handle, size, place)[: size // 3]


def short_preadv(handle: int, buffers: list[memoryview], place: int, *, real: Any = os.preadv) -> Any:
    return real(handle, buffers[:1], place)


SHORT: dict[str, Callable[..., Any]] = {"pwrite": short_pwrite, "pread": short_pread, "preadv": short_preadv}


class Connection:
    """A connection to SQLite whose commits can fail before they are done."""

    def __init__(self, real: sqlite3.Connection, code: int) -> None:
        self._real = real
        self.fault = Fault(real.execute, self._wrong, lambda sql, *_: sql == "COMMIT")
        self.execute = self.fault
        self._code = code

    def _wrong(self, *_: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full" if self._code == errno.ENOSPC else "disk I/O error")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def inject(durable: Durable, monkeypatch: pytest.MonkeyPatch, call: str, kind: str) -> Fault:
    """Let a call of the running engine fail in some way."""
    if call == "commit":
        connection = Connection(durable.archive.catalogue._db, ERRORS[kind])
        monkeypatch.setattr(durable.archive.catalogue, "_db", connection)
        return connection.fault
    wrong = SHORT[call] if kind == "short" else raising(ERRORS[kind])
    inside, real = str(durable.store), getattr(os, call)
    fault = Fault(real, wrong, lambda what, *_: call != "stat" or str(what).startswith(inside))
    monkeypatch.setattr(os, call, fault)
    return fault


# -- one call fails ------------------------------------------------------------------------------------------

CALLS = [("pwrite", "full"), ("pwrite", "broken"), ("pwrite", "short"), ("stat", "broken"), ("commit", "full")]
CALLS += [("commit", "broken"), ("preadv", "broken"), ("preadv", "short"), ("pread", "broken"), ("pread", "short")]


@pytest.mark.parametrize("nths", [(3,), pytest.param((2, 3, 4, 7, 9, 14, 23, 40), marks=pytest.mark.slow)])
@pytest.mark.parametrize(("call", "kind"), CALLS)
def test_a_call_that_fails_once_changes_nothing(
    durable: Durable, monkeypatch: pytest.MonkeyPatch, call: str, kind: str, nths: tuple[int, ...]
) -> None:
    session = new(durable)
    durable.turn(session, FIRST, 3)
    text = durable.tokens(session)
    hits = 0
    for nth in nths:
        durable.restart()  # so that something is to be read
        with monkeypatch.context() as patch:
            fault = inject(durable, patch, call, kind)
            fault.nth = nth
            fork = durable.run.engine.fork_session(session, "").id
            durable.turn(session, random_tokens(20, seed=nth), 3)
            durable.turn(fork, SECOND, 3)
            eventually(lambda: not durable.archive.behind and not durable.failed)
            hits += fault.failed
        text = durable.tokens(session)
        reading = call.startswith("pread")
        assert durable.run.engine.stats().damaged == 0 or reading, "what is written was not damaged"
        assert durable.run.engine.stats().damaged >= min(fault.failed, reading)
        durable.check()
        durable.restart()
        assert durable.tokens(session) == text
        durable.turn(fork, [9], 2)
        assert durable.run.engine.stats().damaged == 0
        durable.check()
        durable.run.engine.delete_session(fork, "")
    assert hits, "the test misses what it is for"


# -- it fails for a while ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "kind"), [call for call in CALLS[:6] if call[1] != "short"])
def test_while_the_disk_fails_everything_goes_on_in_memory(
    durable: Durable, monkeypatch: pytest.MonkeyPatch, call: str, kind: str
) -> None:
    session, gone, changed, rewound = new(durable), new(durable), new(durable), new(durable)
    durable.turn(session, FIRST, 3)
    durable.turn(rewound, FIRST, 3)
    durable.turn(gone, SECOND, 1)
    durable.turn(changed, SECOND, 1)
    durable.flush()
    fault = inject(durable, monkeypatch, call, kind)
    fault.on = True
    durable.turn(session, SECOND, 9)
    born = new(durable)
    durable.turn(born, FIRST[::-1][:40], 3)
    fork = durable.run.engine.fork_session(session, "").id
    durable.turn(fork, [9], 8)
    durable.run.engine.delete_session(gone, "")
    durable.run.engine.change_session(changed, "", pinned=True, ttl=500.0)
    for keep in (50, 40):
        durable.run.engine.rewind_session(rewound, "", tokens=keep)
        durable.turn(rewound, [9], 2)
    eventually(lambda: durable.failed)
    for _ in range(3):
        durable.turn(session, [9], 2)
        assert durable.failed, "it does not tell that the disk still fails"
    texts = {id: durable.tokens(id) for id in (session, changed, born, fork, rewound)}
    turns = durable.run.engine.session_turns(rewound, "")
    fault.on = False
    eventually(lambda: not durable.failed and not durable.archive.behind)
    durable.check()
    durable.restart()
    assert {info.id for info in durable.run.engine.list_sessions("")} == set(texts)
    for id, text in texts.items():
        assert durable.tokens(id) == text, "what was told is lost"
    assert durable.run.engine.session_turns(rewound, "") == turns
    info = durable.run.engine.get_session(changed, "")
    assert info.pinned
    assert info.ttl == pytest.approx(500.0)
    request = durable.turn(session, [9], 2)
    assert request.end.usage.cached_tokens == (len(texts[session]) - 1) // 8 * 8
    assert durable.run.engine.stats().damaged == 0
    durable.check()


@pytest.mark.parametrize("call", ["pwrite", "commit"])
def test_stopping_while_the_disk_fails_keeps_what_was_stored_before(
    durable: Durable, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    session = new(durable)
    durable.turn(session, FIRST, 3)
    durable.flush()
    text = durable.tokens(session)
    with monkeypatch.context() as patch:
        fault = inject(durable, patch, call, "full")
        fault.on = True
        durable.turn(session, SECOND, 9)
        eventually(lambda: durable.failed)
        durable.stop()
    durable.start()
    assert durable.tokens(session)[: len(text)] == text
    request = durable.turn(session, SECOND, 2)
    assert request.end.usage.cached_tokens >= len(text) // 8 * 8
    assert durable.run.engine.stats().damaged == 0
    durable.check()


def test_a_disk_that_fails_while_memory_is_full_stops_work_not_the_server(
    durable: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = [new(durable) for _ in range(4)]
    for number, session in enumerate(idle):
        durable.turn(session, random_tokens(40, seed=number), 2)
    durable.flush()
    fault = inject(durable, monkeypatch, "pwrite", "full")
    fault.on = True
    sessions = [new(durable) for _ in range(4)]
    refused = 0
    for number, session in enumerate(sessions):
        try:
            durable.turn(session, random_tokens(150, seed=10 + number), 2)
        except OutOfRoom:
            refused += 1
    assert 0 < refused <= 4
    assert durable.failed
    assert durable.run.engine.stats().evictions.get("room", 0) == 0, "that gives no memory free"
    fault.on = False
    eventually(lambda: not durable.failed and not durable.archive.behind)
    for session in (*idle, *sessions):
        durable.turn(session, [9], 2)
    durable.check()


# -- damage --------------------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


def places(durable: Durable, session: str, part: str, chance: random.Random, count: int) -> list[tuple[Path, int]]:
    """Bytes of a session's stored blocks: of their headers, their keys and values, or their landmarks."""
    disk = durable.archive.disk
    size = {"header": 20 + 4 * disk._heads, "body": disk.layout.block_bytes, "entry": disk._entry.itemsize}[part]
    found = []
    for slot in chance.sample(durable.session(session).blocks[: durable.session(session).sealed], count):
        start = 4096 + slot * (disk._entry.itemsize if part == "entry" else disk.record_bytes)
        start += disk._first if part == "body" else 0
        found.append((durable.file("landmarks.kv" if part == "entry" else "blocks.kv"), start + chance.randrange(size)))
    return found


@pytest.mark.parametrize("part", ["header", "body", "entry"])
@pytest.mark.parametrize("seed", range(2))
def test_flipped_bytes_are_found_and_what_they_hit_is_computed_again(durable: Durable, part: str, seed: int) -> None:
    chance = random.Random(f"{part}{seed}")
    session = new(durable)
    durable.turn(session, FIRST, 3)
    fork = durable.run.engine.fork_session(session, "").id
    durable.turn(fork, SECOND, 3)
    durable.turn(session, SECOND, 3)
    hit = places(durable, session, part, chance, 2)
    durable.stop()
    for path, place in hit:
        flip(path, place)
    durable.start()
    whole = [*durable.tokens(session), 9]
    told = durable.run.ask([9], session=session, max_tokens=3, retrieval=EXACT).tokens()
    assert told == durable.alone.ask(whole, max_tokens=3, retrieval=EXACT).tokens()
    assert durable.run.engine.stats().damaged > 0
    durable.turn(session, [9], 3)
    durable.turn(fork, [9], 3)
    durable.check()
    found = durable.session(session)
    durable.flush()
    assert not any(map(durable.archive.disk.damage, found.blocks[: found.sealed], found.hashes[1:])), "it stays"
    durable.restart()
    for id in (session, fork):
        durable.turn(id, [9], 3)
    assert durable.run.engine.stats().damaged == 0
    durable.check()


@pytest.mark.parametrize("name", ["blocks.kv", "landmarks.kv"])
@pytest.mark.parametrize("kept", [0, 40_000])
def test_a_file_that_was_cut_off(durable: Durable, name: str, kept: int) -> None:
    sessions = [new(durable) for _ in range(2)]
    for session in sessions:
        durable.turn(session, FIRST, 3)
    path = durable.file(name)
    durable.stop()
    os.truncate(path, min(kept, path.stat().st_size - 1))
    durable.start()
    for session in sessions:
        durable.turn(session, SECOND, 3)
    assert durable.run.engine.stats().damaged > 0
    durable.restart()
    for session in sessions:
        durable.turn(session, SECOND, 3)
    assert durable.run.engine.stats().damaged == 0
    durable.check()


def test_damage_under_a_running_engine(durable: Durable) -> None:
    """Everything on the disk becomes zeros between two turns."""
    sessions = [new(durable) for _ in range(2)]
    for number, session in enumerate(sessions):
        durable.turn(session, random_tokens(240, seed=number), 3)
    durable.flush()
    for name in ("blocks.kv", "landmarks.kv"):
        path = durable.file(name)
        with path.open("r+b") as file:
            size = path.stat().st_size
            file.seek(4096)
            file.write(bytes(size - 4096))
    for _ in range(2):
        for session in sessions:
            durable.turn(session, [9], 3)
    assert durable.run.engine.stats().damaged > 0
    durable.check()
    durable.restart()
    for session in sessions:
        durable.turn(session, [9], 3)


def test_a_damaged_block_that_others_share_is_not_taken_again(durable: Durable) -> None:
    """Each session finds the damage once, when it is brought back; what was computed instead stays."""
    session = new(durable)
    durable.turn(session, FIRST, 3)
    fork = durable.run.engine.fork_session(session, "").id
    durable.park_all()
    for path, place in places(durable, session, "entry", random.Random(1), 1):
        flip(path, place)
    for _ in range(3):
        for id in (session, fork):
            durable.turn(id, [9], 2)
        durable.park_all()
        assert durable.run.engine.stats().damaged == 2
    assert durable.session(session).blocks[:10] == durable.session(fork).blocks[:10]
    durable.check()


def test_damage_is_mended_while_several_sessions_run(durable: Durable) -> None:
    session = new(durable)
    durable.turn(session, random_tokens(200, seed=4), 3)
    forks = [durable.run.engine.fork_session(session, "").id for _ in range(3)]
    hit = places(durable, session, "body", random.Random(5), 12)
    texts = [durable.tokens(fork) for fork in forks]
    durable.stop()
    for path, place in hit:
        flip(path, place)
    durable.start()
    requests = [durable.run.submit([9 + n], session=fork, max_tokens=6) for n, fork in enumerate(forks)]
    for number, (text, request) in enumerate(zip(texts, requests, strict=True)):
        assert request.result().tokens() == durable.answer([*text, 9 + number], 6)
    durable.check()


# -- the folder ----------------------------------------------------------------------------------------------


def test_a_folder_that_vanishes(durable: Durable) -> None:
    session = new(durable)
    durable.turn(session, FIRST, 3)
    shutil.rmtree(durable.store)
    durable.turn(session, SECOND, 3)
    eventually(lambda: durable.failed)
    durable.turn(new(durable), SECOND, 3)
    fork = durable.run.engine.fork_session(session, "").id
    durable.turn(fork, [9], 3)
    assert durable.run.engine.alive
    durable.stop()
    durable.start()
    assert durable.run.engine.list_sessions("") == []
    durable.turn(new(durable), FIRST, 3)
    assert not durable.failed


def test_a_folder_that_comes_back(durable: Durable) -> None:
    session = new(durable)
    durable.turn(session, FIRST, 3)
    away = durable.store.with_name("away")
    durable.store.rename(away)
    durable.turn(session, SECOND, 9)
    eventually(lambda: durable.failed)
    away.rename(durable.store)
    eventually(lambda: not durable.failed and not durable.archive.behind)
    text = durable.tokens(session)
    durable.restart()
    assert durable.tokens(session) == text
    durable.turn(session, [9], 2)
    durable.check()


def test_a_folder_that_cannot_be_made_is_told(durable: Durable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(InvalidParameter, match="disk_kv_path"):
            durable._started({**durable.config, "kv_bytes": BLOCKS * durable.block_bytes, "disk_kv_path": str(path)})


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_permission_is_told(durable: Durable) -> None:
    durable.stop()
    durable.store.chmod(0o500)
    try:
        (durable.store / "lock").unlink(missing_ok=True)
        with pytest.raises(InvalidParameter, match="disk_kv_path"):
            durable.start()
    finally:
        durable.store.chmod(0o700)
    durable.start()


@pytest.mark.parametrize("call", ["pwrite", "pread"])
def test_a_start_that_fails_can_be_repeated(
    durable: Durable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str
) -> None:
    durable.stop()
    config = {**durable.config, "kv_bytes": BLOCKS * durable.block_bytes, "disk_kv_path": str(tmp_path / "other")}
    for nth in (1, 2):
        with monkeypatch.context() as patch:
            fault = inject(durable, patch, call, "broken")
            fault.nth = nth
            with pytest.raises(InvalidParameter, match="disk_kv_path"):
                durable._started(config)
    run = durable._started(config)
    assert run.ask(FIRST, max_tokens=3).tokens() == durable.answer(FIRST, 3)
    run.engine.stop()


def test_a_failed_engine_is_told_to_who_waits(durable: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong when a session is brought back, its request is answered."""
    session = new(durable)
    durable.turn(session, FIRST, 3)
    durable.restart()
    monkeypatch.setattr(durable.registry, "waking", raising(errno.EIO))
    with pytest.raises(EngineError):
        durable.run.ask([9], session=session)
    monkeypatch.undo()
    durable.turn(session, [9], 2)
