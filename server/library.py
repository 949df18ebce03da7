"""Which documents a session has read, and where: so that a passage can name its document and its page.

Owns what is remembered of a document. A place is believed only while the session's tokens there are the document's:
after a rewind it is forgotten by itself. Knows no engine and no HTTP.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from engine import StoreError
from server.store import Store

log = logging.getLogger("cairn")
FILE = "documents.sqlite"
COLUMNS = "start, end, name, pages, digest"
"""In the order of a Shelved."""

MIGRATIONS = (
    """
    CREATE TABLE documents (
        number INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, session TEXT NOT NULL,
        start INTEGER NOT NULL, end INTEGER NOT NULL, name TEXT NOT NULL, pages INTEGER, digest BLOB NOT NULL
    );
    CREATE INDEX by_session ON documents (tenant, session)
    """,
)


@dataclass(frozen=True)
class Shelved:
    """A document in a session.

    Attributes:
        start, end: its tokens
        pages: None if it has none
        digest: of its tokens
    """

    start: int
    end: int
    name: str
    pages: int | None
    digest: bytes

    def is_in(self, tokens: Sequence[int]) -> bool:
        """Whether a session of these tokens holds the document at its place."""
        return self.end <= len(tokens) and digest_of(tokens[self.start : self.end]) == self.digest


class Library:
    """The documents of all sessions; what cannot be remembered is logged, and missed by passages alone.

    Args:
        folder: where they outlive the server; None keeps them in memory
    """

    def __init__(self, folder: Path | None) -> None:
        self._store = Store(folder and folder / FILE, MIGRATIONS)

    def add(self, tenant: str, session: str, document: Shelved, living: Iterable[str]) -> None:
        """Remember a document; forget those of the tenant's sessions that are not among the `living` any more."""
        row = (tenant, session, *astuple(document))
        try:
            with self._store.transaction():
                self._store.execute(
                    f"INSERT INTO documents (tenant, session, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", *row
                )
                self._forget(tenant, {session, *living})
        except StoreError as error:
            log.error("a document is not remembered: %s", error)

    def fork(self, tenant: str, parent: str, session: str) -> None:
        """A fork holds what its parent does."""
        copied = f"SELECT tenant, ?, {COLUMNS} FROM documents WHERE tenant = ? AND session = ? ORDER BY number"
        try:
            self._store.execute(f"INSERT INTO documents (tenant, session, {COLUMNS}) {copied}", session, tenant, parent)
        except StoreError as error:
            log.error("the documents of a fork are not remembered: %s", error)

    def of(self, tenant: str, session: str | None) -> list[Shelved]:
        """What a session was given, in order; it may have been rewound since, see `Shelved.is_in`."""
        if session is None:
            return []
        where = "WHERE tenant = ? AND session = ? ORDER BY number"
        try:
            rows = self._store.execute(f"SELECT {COLUMNS} FROM documents {where}", tenant, session)
        except StoreError as error:
            log.error("documents cannot be looked up: %s", error)
            return []
        return [Shelved(*row) for row in rows]

    def close(self) -> None:
        """Let go of the file."""
        self._store.close()

    def _forget(self, tenant: str, living: set[str]) -> None:
        known = self._store.execute("SELECT DISTINCT session FROM documents WHERE tenant = ?", tenant)
        for session in {session for (session,) in known} - living:
            self._store.execute("DELETE FROM documents WHERE tenant = ? AND session = ?", tenant, session)


def digest_of(tokens: Sequence[int]) -> bytes:
    """Stands for tokens."""
    return hashlib.blake2b(array("q", tokens).tobytes(), digest_size=16).digest()
