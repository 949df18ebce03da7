"""The manifest of a store folder, in SQLite: its sessions, their texts and turns, and which slot holds which hash.

Owns the tables and what a crash, a full disk or an older file does to them. Does not know the block file: a slot is a
number, a hash is bytes. A text is kept in chunks, one row per append, so that it grows without being written again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from cache.errors import StoreError
from cache.readings import Run
from cache.turns import Turn

SMALL_CHUNK = 4096
"""Tokens below which a session's last chunk takes in the next ones."""
COLUMNS = "id, tenant, fingerprint, created, used, parent, pinned, expires, blocks_per_head"
"""In the order of a SessionRecord."""

MIGRATIONS = (
    """
    CREATE TABLE sessions (
        id TEXT NOT NULL PRIMARY KEY, tenant TEXT NOT NULL, fingerprint BLOB NOT NULL,
        created REAL NOT NULL, used REAL NOT NULL, parent TEXT,  -- refers to nothing: a fork outlives its parent
        pinned INTEGER NOT NULL, expires REAL, blocks_per_head INTEGER, length INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE chunks (
        session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE, start INTEGER NOT NULL,
        tokens BLOB NOT NULL CHECK (length(tokens) > 0 AND length(tokens) % 4 = 0), PRIMARY KEY (session, start)
    );
    CREATE TABLE blocks (fingerprint BLOB, slot INTEGER, hash BLOB, PRIMARY KEY (fingerprint, slot)) WITHOUT ROWID;
    """,
    """
    CREATE TABLE turns (
        session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE, number INTEGER NOT NULL,
        start INTEGER NOT NULL, answer INTEGER NOT NULL, blocks_per_head INTEGER, PRIMARY KEY (session, number)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE readings (
        session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE, start INTEGER NOT NULL,
        fetch INTEGER NOT NULL, top_p REAL NOT NULL, PRIMARY KEY (session, start)
    ) WITHOUT ROWID;
    """,
)
"""Number n brings a file from version n to n + 1; each statement ends a line. What was released must not change."""

FAULTS = (
    ("SELECT * FROM pragma_integrity_check WHERE integrity_check <> 'ok'", "SQLite finds: {0}.", "REINDEX"),
    (
        "SELECT session, start FROM (SELECT session, start, lag(start + length(tokens) / 4, 1, 0) OVER (PARTITION BY "
        "session ORDER BY start) AS due FROM chunks) WHERE start <> due OR session NOT IN (SELECT id FROM sessions)",
        "The text of session {0} from token {1} on continues nothing: what is before it, or the session, is missing.",
        "DELETE FROM chunks WHERE session = ? AND start >= ?",
    ),
    (
        "SELECT total(length(tokens)) / 4 AS stored, id FROM sessions LEFT JOIN chunks ON session = id GROUP BY id "
        "HAVING stored <> length",
        "The text of session {1} has {0:.0f} tokens, and another length is noted.",
        "UPDATE sessions SET length = ? WHERE id = ?",
    ),
    (
        "SELECT session, number FROM turns LEFT JOIN sessions ON id = session WHERE id IS NULL OR start > length",
        "Turn {1} of session {0} begins behind its text.",
        "DELETE FROM turns WHERE session = ? AND number = ?",
    ),
    (
        "SELECT length, session, number FROM turns JOIN sessions ON id = session WHERE answer > length",
        "Turn {2} of session {1} has an answer behind its text.",
        "UPDATE turns SET answer = ? WHERE session = ? AND number = ?",
    ),
    (
        "SELECT session, readings.start FROM readings LEFT JOIN sessions ON id = session "
        "WHERE id IS NULL OR readings.start >= length",
        "How session {0} is read is noted for token {1}, behind its text.",
        "DELETE FROM readings WHERE session = ? AND start = ?",
    ),
)
"""How to find faults, what they are, how to mend one; in the order of mending."""

REMEDIES = {sqlite3.SQLITE_CONSTRAINT: "use another id", sqlite3.SQLITE_NOTADB: "move this file away"}
REMEDY = "see that the disk has room and that this user may write the folder and its files, or restore a backup"


@dataclass(frozen=True)
class SessionRecord:
    """What is kept of a session besides its text."""

    id: str
    tenant: str
    fingerprint: bytes  # the model and the settings that its blocks belong to
    created: float
    used: float
    parent: str | None = None
    pinned: bool = False
    expires: float | None = None  # seconds since the epoch, after which it may be deleted
    blocks_per_head: int | None = None  # what an audit has raised it to


class Catalogue:
    """One file, for any number of threads; errors of SQLite come out as StoreError and leave the object usable."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path.absolute()
        self._begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
        self._lock, self._depth = threading.RLock(), 0
        uri = f"{self._path.as_uri()}?mode={'ro' if read_only else 'rw'}"  # as_uri quotes "?" and "#"
        with self._errors():
            if not read_only:
                self._path.touch(0o600)  # opens none that is there: closing it would drop this process's locks
            self._file = os.stat(self._path)
            self._db = sqlite3.connect(uri, timeout=10.0, isolation_level=None, check_same_thread=False, uri=True)
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._db.close)
            found, newest = self._execute("PRAGMA user_version")[0][0], len(MIGRATIONS)
            if found > newest or (read_only and found < newest):
                advice = "use a newer server" if found > newest else "open it for writing once"
                raise StoreError(f"{self._path} has version {found} and this server knows {newest}; {advice}")
            for pragma in () if read_only else ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                self._execute(f"PRAGMA {pragma}")
            for version in range(found, newest):
                self._migrate(version)
            on_error.pop_all()

    def _migrate(self, version: int) -> None:
        """Bring the file from one version to the next, unless another process was faster."""
        with self.transaction():
            if self._execute("PRAGMA user_version") == [(version,)]:
                for statement in (*MIGRATIONS[version].split(";\n"), f"PRAGMA user_version = {version + 1}"):
                    self._execute(statement)

    def close(self) -> None:
        with self._lock, self._errors():
            self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What is called inside is committed at once or, on an exception, not at all. It can be nested."""
        with self._lock:
            begin, commit, undo = self._begin, "COMMIT", ["ROLLBACK"]
            if self._depth:
                begin, commit, undo = "SAVEPOINT part", "RELEASE part", ["ROLLBACK TO part", "RELEASE part"]
            with self._errors():
                if not os.path.samestat(os.stat(self._path), self._file):  # SQLite would go on with the old one
                    raise StoreError(f"{self._path} was replaced; restart the server")
            self._execute(begin)
            self._depth += 1
            try:
                yield
                self._execute(commit)
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    for statement in undo:
                        self._db.execute(statement)
                raise
            finally:
                self._depth -= 1

    def _execute(self, sql: str, *parameters: Any) -> list[Any]:
        with self._lock, self._errors():
            if self._depth and not self._db.in_transaction:  # some errors make SQLite roll back by itself
                raise StoreError(f"{self._path}: the transaction has failed; start it again")
            return self._db.execute(sql, parameters).fetchall()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the higher bits are details
            raise StoreError(f"{self._path}: {error}; {REMEDIES.get(code, REMEDY)}") from error

    def create(self, record: SessionRecord) -> None:
        """Add a session without text."""
        with self.transaction():
            self._execute(f"INSERT INTO sessions ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *astuple(record))

    def fork(self, record: SessionRecord, parent: str, tokens: int) -> None:
        """Add a session whose text is the first `tokens` tokens of the parent's; ValueError if it has fewer."""
        copied = "SELECT ?, start, substr(tokens, 1, 4 * (? - start)) FROM chunks WHERE session = ? AND start < ?"
        with self.transaction():
            if not 0 <= tokens <= self.length(parent):
                raise ValueError(f"session {parent} has {self.length(parent)} tokens, cannot copy {tokens}")
            self.create(record)
            self._execute(f"INSERT INTO chunks (session, start, tokens) {copied}", record.id, tokens, parent, tokens)
            self._execute("UPDATE sessions SET length = ? WHERE id = ?", tokens, record.id)
            turns = (
                "SELECT ?, number, start, min(answer, ?), blocks_per_head FROM turns WHERE session = ? AND start < ?"
            )
            self._execute(f"INSERT INTO turns {turns}", record.id, tokens, parent, tokens)
            readings = "SELECT ?, start, fetch, top_p FROM readings WHERE session = ? AND start < ?"
            self._execute(f"INSERT INTO readings {readings}", record.id, parent, tokens)

    def append(self, session: str, start: int, tokens: Sequence[int], readings: Iterable[Run] = ()) -> None:
        """Add tokens [start, start + len(tokens)); ValueError unless `start` is the length of a session.

        Args:
            readings: runs that begin in them
        """
        data = struct.pack(f"<{len(tokens)}i", *tokens)
        with self.transaction():
            if self._execute("SELECT length FROM sessions WHERE id = ?", session) != [(start,)]:
                raise ValueError(f"session {session} has {self.length(session)} tokens, cannot add any at {start}")
            last = "SELECT max(start), length(tokens), rowid FROM chunks WHERE session = ?"
            first, size, row = self._execute(last, session)[0]
            if row and 4 * first + size == 4 * start and size < 4 * SMALL_CHUNK:  # "||" makes a text of the bytes
                self._execute("UPDATE chunks SET tokens = CAST(tokens || ? AS BLOB) WHERE rowid = ?", data, row)
            elif data:
                self._execute("INSERT INTO chunks (session, start, tokens) VALUES (?, ?, ?)", session, start, data)
            self._execute("UPDATE sessions SET length = ? WHERE id = ?", start + len(tokens), session)
            for run in readings:
                self._execute("INSERT INTO readings VALUES (?, ?, ?, ?)", session, *run)

    def cut(self, session: str, tokens: int) -> None:
        """Keep the first `tokens` tokens of a text, and the turns that began in them."""
        with self.transaction():
            self._execute("DELETE FROM chunks WHERE session = ? AND start >= ?", session, tokens)
            shorter = "tokens = substr(tokens, 1, 4 * (? - start))"
            behind = "session = ? AND start + length(tokens) / 4 > ?"
            self._execute(f"UPDATE chunks SET {shorter} WHERE {behind}", tokens, session, tokens)
            self._execute("UPDATE sessions SET length = min(length, ?) WHERE id = ?", tokens, session)
            for table in ("turns", "readings"):
                self._execute(f"DELETE FROM {table} WHERE session = ? AND start >= ?", session, tokens)
            self._execute("UPDATE turns SET answer = min(answer, ?) WHERE session = ?", tokens, session)

    def add_turns(self, session: str, turns: Iterable[Turn], oldest: int) -> None:
        """Note turns, in the place of those of the same numbers; forget those before number `oldest`."""
        rows = [(session, turn.index, turn.start, turn.answer, turn.blocks_per_head) for turn in turns]
        with self.transaction(), self._errors():
            self._db.executemany("INSERT OR REPLACE INTO turns VALUES (?, ?, ?, ?, ?)", rows)
            self._execute("DELETE FROM turns WHERE session = ? AND number < ?", session, oldest)

    def turns(self, session: str) -> list[Turn]:
        """Oldest first; one that began and added nothing is left out."""
        columns = "number, start, answer, blocks_per_head"
        begun = "session = ? AND start < (SELECT length FROM sessions WHERE id = session)"
        return [
            Turn(*row) for row in self._execute(f"SELECT {columns} FROM turns WHERE {begun} ORDER BY number", session)
        ]

    def readings(self, session: str) -> list[Run]:
        """How its tokens are read, from the first that is not read as the server does."""
        rows = "SELECT start, fetch, top_p FROM readings WHERE session = ? ORDER BY start"
        return [Run(*row) for row in self._execute(rows, session)]

    def length(self, session: str) -> int:
        """Stored tokens; 0 if the session is unknown."""
        return next((length for (length,) in self._execute("SELECT length FROM sessions WHERE id = ?", session)), 0)

    def tokens(self, session: str) -> array[int]:
        """The text; StoreError if a part of it is missing, so that no other text passes for it."""
        text: array[int] = array("l")
        with self.transaction():
            chunks = self._execute("SELECT start, tokens FROM chunks WHERE session = ? ORDER BY start", session)
            for start, data in (*chunks, (self.length(session), b"")):
                if start != len(text):
                    raise StoreError(f"{self._path} lacks a part of the text of session {session}; repair it")
                text.extend(struct.unpack(f"<{len(data) // 4}i", data))
        return text

    def update(self, session: str, **changes: float | None) -> None:
        """Change any of used, pinned, expires, blocks_per_head, if the session is there."""
        if unknown := changes.keys() - {"used", "pinned", "expires", "blocks_per_head"}:
            raise TypeError(f"cannot change {', '.join(sorted(unknown))} of a session")
        if changes:
            names = ", ".join(f"{name} = ?" for name in changes)
            with self.transaction():
                self._execute(f"UPDATE sessions SET {names} WHERE id = ?", *changes.values(), session)

    def delete(self, session: str) -> None:
        """Delete a session and its text, if it is there; its blocks and its forks stay."""
        with self.transaction():
            self._execute("DELETE FROM sessions WHERE id = ?", session)

    def sessions(self) -> list[SessionRecord]:
        """All of them, oldest first."""
        rows = self._execute(f"SELECT {COLUMNS} FROM sessions ORDER BY created, rowid")
        return [replace(record, pinned=bool(record.pinned)) for record in (SessionRecord(*row) for row in rows)]

    def add_blocks(self, fingerprint: bytes, blocks: Iterable[tuple[int, bytes]]) -> None:
        """Note (slot, hash) pairs; a slot that is there already gets the new hash."""
        with self.transaction(), self._errors():
            self._db.executemany("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?)", [(fingerprint, *b) for b in blocks])

    def remove_blocks(self, fingerprint: bytes, slots: Iterable[int]) -> None:
        rows = [(fingerprint, slot) for slot in slots]
        with self.transaction(), self._errors():
            self._db.executemany("DELETE FROM blocks WHERE fingerprint = ? AND slot = ?", rows)

    def blocks(self, fingerprint: bytes) -> dict[bytes, int]:
        """Slots by their hashes; the last slot of a hash that has several."""
        return dict(self._execute("SELECT hash, slot FROM blocks WHERE fingerprint = ? ORDER BY slot", fingerprint))

    def fingerprints(self) -> list[bytes]:
        """Of which there are blocks."""
        return [row[0] for row in self._execute("SELECT DISTINCT fingerprint FROM blocks ORDER BY fingerprint")]

    def check(self) -> list[str]:
        """Problems found, as sentences."""
        try:
            with self.transaction():
                return [sentence.format(*row) for query, sentence, _ in FAULTS for row in self._execute(query)]
        except StoreError as error:
            return [str(error)]

    def repair(self) -> list[str]:
        """Mend what `check` finds, a text with a gap by keeping what is before it; what was done, as sentences."""
        done = []
        with self.transaction():
            for query, sentence, mending in FAULTS:
                for row in self._execute(query):
                    self._execute(mending, *row[: mending.count("?")])
                    done.append(f"{sentence.format(*row)} Mended.")
            if done and (left := self.check()):
                raise StoreError(f"{self._path} cannot be mended; restore it from a backup. {left[0]}")
        return done
