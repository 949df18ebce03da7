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

from pydantic import BaseModel, Field, ValidationError

from engine import StoreError
from server.store import Store

log = logging.getLogger("cairn")
FILE = "documents.sqlite"
MAX_NAME = 255
"""Characters of a document's name that are kept."""
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


class Noted(BaseModel):
    """A document as a session file has it: a Shelved, with its digest in hexadecimal digits."""

    start: int = Field(ge=0, lt=1 << 63)
    end: int = Field(ge=0, lt=1 << 63)
    name: str = Field(max_length=MAX_NAME)
    pages: int | None = Field(ge=0, lt=1 << 63)
    digest: str = Field(pattern="^[0-9a-f]{32}$")


class Notes(BaseModel):
    """What a session file says about documents."""

    documents: list[Noted] = Field(max_length=10_000)


class Library:
    """The documents of all sessions; what cannot be remembered is logged, and missed by passages alone.

    Args:
        folder: where they outlive the server; None keeps them in memory
    """

    def __init__(self, folder: Path | None) -> None:
        self._store = Store(folder and folder / FILE, MIGRATIONS)

    def add(self, tenant: str, session: str, documents: Iterable[Shelved], living: Iterable[str]) -> None:
        """Remember documents; forget those of the tenant's sessions that are not among the `living` any more."""
        insert = f"INSERT INTO documents (tenant, session, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
        try:
            with self._store.transaction():
                for document in documents:
                    self._store.execute(insert, tenant, session, *astuple(document))
                self._forget(tenant, {session, *living})
        except StoreError as error:
            log.error("documents are not remembered: %s", error)

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

    def notes(self, tenant: str, session: str) -> bytes:
        """The documents of a session, for a session file."""
        noted = [Noted(**{**vars(document), "digest": document.digest.hex()}) for document in self.of(tenant, session)]
        return Notes(documents=noted).model_dump_json().encode()

    def take(self, tenant: str, session: str, notes: bytes, living: Iterable[str]) -> None:
        """Remember the documents of a session that came as a file; notes that make no sense are left out."""
        try:
            noted = Notes.model_validate_json(notes).documents
        except ValidationError:
            log.warning("a session file's notes on documents are not understood, and left out")
            return
        documents = [Shelved(**{**vars(each), "digest": bytes.fromhex(each.digest)}) for each in noted]
        if documents:
            self.add(tenant, session, documents, living)

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
