"""What the server itself remembers besides sessions, in SQLite: opening a file, migrations, transactions.

Owns how a file is opened and what its errors become. Knows no table: each part of the server that keeps something
has its own file, and its own migrations. Without a folder it is kept in memory and ends with the process.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine import StoreError

REMEDY = "see that the disk has room and that this user may write the file, or move it away: sessions do not need it"


class Store:
    """A small database for any number of threads; what SQLite cannot do comes out as StoreError.

    Args:
        path: the file; None keeps everything in memory
        migrations: number n brings a file from version n to n + 1. What was released must not change.
    """

    def __init__(self, path: Path | None, migrations: Sequence[str]) -> None:
        self._name = "the store in memory" if path is None else str(path)
        self._lock = threading.RLock()
        with self._errors():
            if path is not None:
                path.touch(0o600)
            self._db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._db.close)
            self._prepare(migrations)
            on_error.pop_all()

    def _prepare(self, migrations: Sequence[str]) -> None:
        [(found,)] = self.execute("PRAGMA user_version")
        if found > len(migrations):
            raise StoreError(f"{self._name} has version {found}, this server knows {len(migrations)}; use a newer one")
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            self.execute(f"PRAGMA {pragma}")
        for version in range(found, len(migrations)):
            with self.transaction():
                for statement in (*migrations[version].split(";\n"), f"PRAGMA user_version = {version + 1}"):
                    self.execute(statement)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What is executed inside is committed at once or, on an exception, not at all. Not to be nested."""
        with self._lock:
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    def execute(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """One statement and its rows."""
        with self._lock, self._errors():
            return self._db.execute(sql, parameters).fetchall()

    def close(self) -> None:
        with self._lock, self._errors():
            self._db.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self._name}: {error}; {REMEDY}") from error
