"""A session that is imported while another one decodes, with the least memory: neither harms the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cache import OutOfBlocks
from engine import OutOfRoom
from tests.engine.durable import BLOCKS, Durable
from tests.engine.test_session_file import export, take
from tests.models import random_tokens

LONG, SHORT = random_tokens(400, seed=1), random_tokens(300, seed=2)
SOON = 5.0
"""Seconds: less than what is waited for the disk, more than anything here takes else."""


@pytest.fixture(params=[False, True], ids=["memory", "window"])
def durable(request: pytest.FixtureRequest, tmp_path: Path, tiny_folder: Path) -> Iterator[Durable]:
    made = Durable(tiny_folder, tmp_path / "store", window=request.param)
    yield made
    made.run.gate.open()
    made.close()


@pytest.fixture
def path(durable: Durable, tmp_path: Path) -> Path:
    """The file of a session that is not there any more."""
    session = durable.run.engine.create_session("").id
    durable.turn(session, LONG, 1)
    written = export(durable.run, session, tmp_path / "file")
    durable.run.engine.delete_session(session, "")
    durable.flush()
    return written


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def new(durable: Durable) -> str:
    return durable.run.engine.create_session("").id


class Beside:
    """Imports a session again and again, each time as somebody else's, so that all of its blocks are new ones."""

    def __init__(self, durable: Durable, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks = self.refused = 0
        self._durable, self._path, self._over = durable, path, threading.Event()
        self._fill = durable.blocks.fill
        monkeypatch.setattr(durable.blocks, "fill", self._count)

    def _count(self, *block: Any) -> None:
        self._fill(*block)
        self.blocks += 1

    def go_on(self) -> None:
        engine, number = self._durable.run.engine, 0
        while not self._over.is_set():
            try:
                engine.delete_session(take(self._durable.run, self._path, tenant=str(number))[0], str(number))
            except OutOfRoom:
                self.refused += 1
            number += 1

    def end(self) -> None:
        self._over.set()

    def wait_for(self, blocks: int) -> None:
        """Until so many more blocks have come, or as many as find room."""
        end, goal = time.monotonic() + 0.1, self.blocks + blocks
        while self.blocks < goal and time.monotonic() < end:
            time.sleep(0.001)


def test_what_a_step_reads_is_not_overwritten(
    durable: Durable, path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between locating and reading there is time for others to fill the whole memory."""
    session, tier, beside = new(durable), durable.blocks.tier, Beside(durable, path, monkeypatch)
    durable.turn(session, SHORT, 1)
    locate, before = tier.locate, beside.blocks

    def slow(*asked: Any, **how: Any) -> Any:
        places = locate(*asked, **how)
        beside.wait_for(BLOCKS)
        return places

    monkeypatch.setattr(tier, "locate", slow)
    going = pool.submit(beside.go_on)
    try:
        durable.turn(session, [9, 8, 7], 6)
    finally:
        beside.end()
    going.result()
    assert beside.blocks - before > 5 * BLOCKS, "hardly anything came beside it"
    durable.check()


# -- when there is no room -----------------------------------------------------------------------------------


@contextmanager
def stalled(durable: Durable, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The disk is at work on the first thing that it gets, and does not come to an end."""
    write, ended = durable.archive.disk.write, threading.Event()

    def late(*block: Any) -> None:
        ended.wait()
        write(*block)

    monkeypatch.setattr(durable.archive.disk, "write", late)
    try:
        yield
    finally:
        ended.set()


class Filled:
    """Memory without room for a block."""

    def __init__(self, durable: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused = threading.Event()
        """Somebody else wanted a block."""
        self._durable, self._slots = durable, list[int]()
        self._allocate = durable.blocks.allocate
        with durable.run.engine._changed, suppress(OutOfBlocks):
            while True:
                self._slots.append(self._allocate())
        monkeypatch.setattr(durable.blocks, "allocate", self._wanted)

    def _wanted(self) -> int:
        try:
            return self._allocate()
        except OutOfBlocks:
            self.refused.set()
            raise

    def release(self, count: int | None = None) -> None:
        with self._durable.run.engine._changed:
            self._durable.blocks.release(self._slots[:count])
        del self._slots[:count]


def importing(durable: Durable, path: Path, pool: ThreadPoolExecutor) -> Future[tuple[str, int]]:
    return pool.submit(take, durable.run, path, tenant="another")


def test_an_import_without_room_does_not_stop_what_decodes(
    durable: Durable, path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, gate = new(durable), durable.run.gate
    with stalled(durable, monkeypatch):
        gate.close()
        asked = durable.run.submit(SHORT[:17], session=session, max_tokens=6)  # all in blocks that it has
        gate.wait()
        filled = Filled(durable, monkeypatch)
        taking = importing(durable, path, pool)
        assert filled.refused.wait(SOON)
        begun = time.monotonic()
        gate.open()
        assert asked.result().tokens() == durable.answer(SHORT[:17], 6)
        assert time.monotonic() < begun + SOON
        assert not taking.done(), "it waits for room"
    filled.release()
    came, restored = taking.result()
    assert (restored, durable.tokens(came, "another")[:400]) == (400, LONG)
    durable.turn(came, [9], 4, tenant="another")
    durable.check()


def test_a_step_that_waits_for_room_gets_it_first_and_stops_nobody(
    durable: Durable, path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, gate = new(durable), durable.run.gate
    with stalled(durable, monkeypatch):
        gate.close()
        asked = durable.run.submit(SHORT[:15], session=session, max_tokens=6)  # 16 fill two blocks
        gate.wait()
        filled = Filled(durable, monkeypatch)
        gate.open()
        assert filled.refused.wait(SOON)
        begun = time.monotonic()
        new(durable)
        assert time.monotonic() < begun + 1.0, "who asks something else waits, too"
        taking = importing(durable, path, pool)
        time.sleep(0.1)
        filled.release(1)
        assert asked.result().tokens() == durable.answer(SHORT[:15], 6)
        assert not taking.done()
    filled.release()
    assert taking.result()[1] == 400
    durable.check()
