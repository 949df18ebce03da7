"""Who writes a folder: in order, one process at a time, and again when the disk has recovered."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cache.archive
from cache import Archive, CacheLayout, StoreError
from cache.archive import BATCH, Freed, Sealed
from cache.layout import Bytes

LAYOUT = CacheLayout(layers=1, kv_heads=2, head_dim=8, block_size=4)
ENTRY, MARK = 6, b"f" * 32
UNIT = LAYOUT.block_bytes // LAYOUT.layers // LAYOUT.kv_heads


class Writing:
    """An archive and what it is told to write."""

    def __init__(self, folder: Path) -> None:
        self.archive = Archive(folder, LAYOUT, ENTRY, 4 << 20, MARK)
        self.contents: dict[int, Bytes] = {}
        self.written: list[int] = []
        self.hold = threading.Event()
        self.hold.set()
        self._numbers = np.random.default_rng(1)

    def units(self, slot: int) -> Bytes:
        assert self.hold.wait(10)
        return self.contents[slot]

    def start(self) -> None:
        self.archive.start(self.units, self.written.append)

    def seal(self, slot: int, digest: bytes) -> None:
        self.contents[slot] = self._numbers.integers(0, 256, (1, 2, UNIT), dtype=np.uint8)
        self.archive.put(Sealed(slot, digest.ljust(16), np.full(ENTRY, slot, np.uint8)))

    def blocks(self) -> dict[bytes, int]:
        return {digest.strip(): slot for digest, slot in self.archive.catalogue.blocks(MARK).items()}

    def sound(self, slot: int, digest: bytes) -> bool:
        return self.archive.disk.damage(slot, digest.ljust(16)) is None


@pytest.fixture
def writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writing]:
    monkeypatch.setattr(cache.archive, "RETRY_SECONDS", 0.02)
    made = Writing(tmp_path / "store")
    made.start()
    yield made
    made.hold.set()
    made.archive.close()


def until(true: Any) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def failing(code: int) -> Any:
    def pwrite(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    return pwrite


# -- writing -------------------------------------------------------------------------------------------------


def test_what_is_sealed_is_found_and_what_is_freed_is_not(writing: Writing) -> None:
    writing.seal(3, b"a")
    writing.seal(4, b"b")
    assert writing.archive.flush(10)
    assert writing.blocks() == {b"a": 3, b"b": 4}
    assert writing.sound(3, b"a")
    assert writing.written == [3, 4]
    writing.archive.put(Freed(3))
    assert writing.archive.flush(10)
    assert writing.blocks() == {b"b": 4}
    assert writing.archive.behind == 0


def test_what_happens_to_a_slot_happens_in_order(writing: Writing) -> None:
    """Also when it is done together."""
    writing.hold.clear()
    for number in range(10):
        writing.seal(0, b"old%d" % number)
        writing.archive.put(Freed(0))
    writing.seal(0, b"last")
    writing.seal(1, b"gone")
    writing.archive.put(Freed(1))
    assert writing.archive.behind == 12, "what is freed need not be written"
    assert not writing.archive.flush(0.01)
    writing.hold.set()
    assert writing.archive.flush(10)
    assert writing.blocks() == {b"last": 0}
    assert writing.sound(0, b"last")


def test_more_than_a_batch(writing: Writing) -> None:
    count = 2 * BATCH + 7
    writing.hold.clear()
    for slot in range(count):
        writing.seal(slot, b"%d" % slot)
    writing.hold.set()
    assert writing.archive.flush(20)
    assert writing.written == list(range(count))
    assert writing.blocks() == {b"%d" % slot: slot for slot in range(count)}


def test_a_block_is_told_only_when_it_can_be_found(writing: Writing) -> None:
    seen: list[dict[bytes, int]] = []
    writing.archive._written = lambda slot: seen.append(writing.blocks())
    for slot in range(5):
        writing.seal(slot, b"%d" % slot)
    assert writing.archive.flush(10)
    assert len(seen) == 5
    assert all(b"%d" % slot in blocks for slot, blocks in enumerate(seen))


def test_closing_writes_what_is_left(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    for slot in range(100):
        writing.seal(slot, b"%d" % slot)
    writing.start()
    writing.archive.close()
    again = Writing(tmp_path)
    assert len(again.blocks()) == 100
    assert all(again.sound(slot, b"%d" % slot) for slot in range(100))
    again.archive.close()


def test_closing_what_was_never_started(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    writing.archive.close()
    writing.archive.close()
    Writing(tmp_path).archive.close()


# -- failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failure_ends(
    writing: Writing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    writing.seal(0, b"before")
    assert writing.archive.flush(10)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "pwrite", failing(code))
        for slot in range(1, 4):
            writing.seal(slot, b"%d" % slot)
        until(lambda: writing.archive.failure)
        assert os.strerror(code) in (writing.archive.failure or "")
        assert not writing.archive.flush(0.1)
        assert writing.written == [0]
        assert writing.archive.behind == 3
        assert writing.archive.attempt(lambda: None), "texts can still be stored"
        assert writing.archive.failure, "and that does not mean that blocks can"
    assert writing.archive.flush(10)
    assert writing.archive.failure is None
    assert writing.written == [0, 1, 2, 3]
    assert all(writing.sound(slot, b"%d" % slot) for slot in range(1, 4))
    messages = [record.message for record in caplog.records]
    assert len(messages) == 2, "it is told once, not at every try"
    assert "cannot be stored" in messages[0]
    assert "stored again" in messages[1]


def test_texts_fail_by_themselves(writing: Writing) -> None:
    def wrong() -> None:
        raise StoreError("no room")

    assert not writing.archive.attempt(wrong)
    writing.seal(0, b"a")
    assert writing.archive.flush(10)
    assert writing.archive.failure == "no room"
    assert writing.archive.attempt(lambda: None)
    assert writing.archive.failure is None


def test_what_is_wrong_in_the_program_is_not_the_disks_fault(writing: Writing) -> None:
    def wrong() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        writing.archive.attempt(wrong)
    assert writing.archive.failure is None


def test_the_writer_goes_on_whatever_goes_wrong(writing: Writing, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(writing.archive.disk, "write", None)
        writing.seal(0, b"block")
        until(lambda: writing.archive.failure)
    assert writing.archive.flush(10)
    assert writing.archive.failure is None
    assert writing.blocks() == {b"block": 0}


def test_closing_while_the_disk_fails_does_not_wait(writing: Writing, monkeypatch: pytest.MonkeyPatch) -> None:
    writing.seal(0, b"before")
    assert writing.archive.flush(10)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(errno.ENOSPC))
        for slot in range(1, 200):
            writing.seal(slot, b"%d" % slot)
        until(lambda: writing.archive.failure)
        begun = time.monotonic()
        writing.archive.close()
        assert time.monotonic() - begun < 2
    again = Writing(writing.archive.folder)
    assert again.blocks() == {b"before": 0}
    assert again.sound(0, b"before")
    again.archive.close()


def test_a_failure_in_the_middle_of_a_batch(writing: Writing, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.pwrite, 0

    def every_third(handle: int, data: bytes, place: int) -> int:
        nonlocal calls
        calls += 1
        if calls % 29 == 0:
            raise OSError(errno.EIO, "broken")
        return real(handle, data, place)

    monkeypatch.setattr(os, "pwrite", every_third)
    writing.hold.clear()
    for slot in range(20):
        writing.seal(slot, b"%d" % slot)
    writing.hold.set()
    until(lambda: calls > 100 or not writing.archive.behind)
    monkeypatch.undo()
    monkeypatch.setattr(cache.archive, "RETRY_SECONDS", 0.02)
    assert writing.archive.flush(10)
    assert writing.written == list(range(20))
    assert all(writing.sound(slot, b"%d" % slot) for slot in range(20))


def test_the_folder_goes_and_comes_back(writing: Writing) -> None:
    folder = writing.archive.folder
    away = folder.with_name("away")
    folder.rename(away)
    writing.seal(0, b"a")
    until(lambda: writing.archive.failure)
    assert writing.written == []
    away.rename(folder)
    assert writing.archive.flush(10)
    assert writing.archive.failure is None
    assert writing.sound(0, b"a")


def test_a_folder_that_was_removed_is_not_written(writing: Writing) -> None:
    folder = writing.archive.folder
    shutil.rmtree(folder)
    writing.seal(0, b"a")
    until(lambda: writing.archive.failure)
    assert not folder.exists()
    assert "does not lead" in (writing.archive.failure or "")


# -- one process at a time -----------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from cache import Archive, CacheLayout
Archive(Path(sys.argv[1]), CacheLayout(layers=1, kv_heads=2, head_dim=8, block_size=4), 6, 4 << 20, b"f" * 32)
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused(tmp_path: Path, repository: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=repository, text=True,
    )  # fmt: skip
    assert other.stdout
    assert other.stdout.readline() == "open\n"
    for _ in range(2):
        with pytest.raises(StoreError, match="another process uses"):
            Writing(tmp_path)
    other.kill()
    other.communicate()
    Writing(tmp_path).archive.close()  # who was killed does not have it any more


def test_a_second_archive_in_the_same_process_is_refused(writing: Writing) -> None:
    with pytest.raises(StoreError, match="another process uses"):
        Writing(writing.archive.folder)


def test_an_archive_that_cannot_be_opened_lets_go_of_the_folder(tmp_path: Path) -> None:
    writing = Writing(tmp_path)
    path = writing.archive.disk.folder / "blocks.kv"
    writing.archive.close()
    good = path.read_bytes()
    path.write_bytes(b"other" + good[5:])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreError, match="move it away"):
        Writing(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    path.write_bytes(good)
    Writing(tmp_path).archive.close()


def test_the_folder_is_for_its_owner_alone(writing: Writing) -> None:
    folder = writing.archive.folder
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
