"""A folder in which sessions outlive the process: the catalogue, the files of blocks, and who writes them.

Blocks are written on a thread of its own, in the order in which they were sealed, first their keys and values, then
their entry, then their row in the catalogue: whatever is cut off in between is not found later. One process at a time
has the folder. When the disk fails, blocks stay in memory and writing is tried again; nobody waits for it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.catalogue import Catalogue
from cache.errors import StoreError
from cache.layout import Bytes, CacheLayout
from cache.tiers.disk import DiskTier

logger = logging.getLogger(__name__)
BATCH = 64
"""Blocks that get their rows in the catalogue together."""
RETRY_SECONDS = 1.0
CATALOGUE = "catalogue.sqlite"


@dataclass(frozen=True)
class Sealed:
    """A block to write: where it lies, its hash, what its index keeps."""

    slot: int
    digest: bytes
    entry: Bytes


@dataclass(frozen=True)
class Freed:
    """A slot whose block is not to be found any more."""

    slot: int


class Archive:
    """See the module.

    Args:
        folder: made if it is not there
        layout: shapes of a block
        entry_bytes: what an index keeps of a block
        capacity_bytes: of the files of blocks
        fingerprint: of model and cache settings, 32 bytes

    Raises:
        StoreError: the folder cannot be used, or another process has it
    """

    def __init__(
        self, folder: Path, layout: CacheLayout, entry_bytes: int, capacity_bytes: int, fingerprint: bytes
    ) -> None:
        self.fingerprint = fingerprint
        self.folder = folder
        self._lock = lock(folder)
        try:
            self.catalogue = Catalogue(folder / CATALOGUE)
            try:
                self.disk = DiskTier(place(folder, fingerprint), layout, entry_bytes, capacity_bytes, fingerprint)
            except BaseException:
                self.catalogue.close()
                raise
        except BaseException:
            os.close(self._lock)
            raise
        self._failures: dict[str, str] = {}  # of the texts and of the blocks, which can fail by themselves
        self._units: Callable[[int], Bytes] | None = None
        self._written: Callable[[int], None] | None = None
        self._jobs: queue.SimpleQueue[Sealed | Freed | None] = queue.SimpleQueue()
        self._waiting = self._unwritten = 0  # jobs, and those of them that are blocks
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="archive", daemon=True)

    def start(self, units: Callable[[int], Bytes], written: Callable[[int], None]) -> None:
        """Begin to write.

        Args:
            units: gives the keys and values of a slot, as DiskTier.write takes them
            written: is told, on the writer's thread, each slot whose block can be found on the disk
        """
        self._units, self._written = units, written
        self._thread.start()

    def put(self, job: Sealed | Freed) -> None:
        """Do this after everything that was put before; returns at once."""
        with self._changed:
            self._waiting += 1
            self._unwritten += isinstance(job, Sealed)
        self._jobs.put(job)

    def flush(self, seconds: float, left: int = 0) -> bool:
        """Wait until all of it but `left` jobs is done; False if it is not within `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting <= left, timeout=seconds)

    def close(self, seconds: float = 10.0) -> None:
        """Write what is left within `seconds`, and let go of the folder; once, whoever asks how often."""
        if self._thread.is_alive():
            self.flush(0 if self.failure else seconds)
            self._closing = True
            self._jobs.put(None)
            self._thread.join()
        self.catalogue.close()
        self.disk.close()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    @property
    def behind(self) -> int:
        """Blocks that are still to be written."""
        return self._unwritten

    @property
    def failure(self) -> str | None:
        """What went wrong when it was last tried to write; None if nothing."""
        return next(iter(list(self._failures.values())), None)  # a list, for the other thread may change them

    def attempt(self, action: Callable[[], None], of: str = "texts") -> bool:
        """Do something that needs the disk; False, and known as the failure of these, if it could not be done."""
        try:
            if self.disk.vanished():
                raise StoreError(f"{self.disk.folder} does not lead to the open files any more")
            action()
        except (OSError, StoreError) as error:
            if self.failure is None:
                logger.error("sessions cannot be stored, they stay in memory: %s", error)
            self._failures[of] = str(error)
            return False
        if self._failures.pop(of, None) is not None and self.failure is None:
            logger.warning("sessions are stored again")
        return True

    def _work(self) -> None:
        while (first := self._jobs.get()) is not None:
            jobs: list[Sealed | Freed] = [first]
            while len(jobs) < BATCH and not self._jobs.empty():
                job = self._jobs.get()
                if job is None:
                    self._jobs.put(None)
                    break
                jobs.append(job)
            while not self._done(jobs):
                if self._closing:
                    return
                time.sleep(RETRY_SECONDS)
            for job in jobs:
                if isinstance(job, Sealed) and self._written:
                    self._written(job.slot)
            with self._changed:
                self._waiting -= len(jobs)
                self._unwritten -= sum(isinstance(job, Sealed) for job in jobs)
                self._changed.notify_all()

    def _done(self, jobs: list[Sealed | Freed]) -> bool:
        try:
            return self.attempt(lambda: self._do(jobs), "blocks")
        except Exception as error:  # the program's own fault: memory has everything, and it is tried again
            if self.failure is None:
                logger.exception("blocks cannot be written")
            self._failures["blocks"] = repr(error)
            return False

    def _do(self, jobs: list[Sealed | Freed]) -> None:
        assert self._units is not None
        rows: dict[int, bytes | None] = {}  # what is known of a slot in the end
        for job in jobs:
            if isinstance(job, Sealed):
                self.disk.write(job.slot, job.digest, self._units(job.slot), job.entry)
            rows[job.slot] = job.digest if isinstance(job, Sealed) else None
        with self.catalogue.transaction():
            self.catalogue.remove_blocks(self.fingerprint, [slot for slot, digest in rows.items() if digest is None])
            self.catalogue.add_blocks(self.fingerprint, [(slot, digest) for slot, digest in rows.items() if digest])


def place(folder: Path, fingerprint: bytes) -> Path:
    """Where the blocks of a model and its settings lie."""
    return folder / fingerprint.hex()[:16]


def lock(folder: Path) -> int:
    """The folder for this process alone, until the handle is closed; raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreError(f"the store in {folder} cannot be used: {error.strerror or error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise StoreError(f"another process uses the store in {folder}; give each server a folder of its own") from error
    return handle
