"""The responses that are kept, in SQLite: a file beside the sessions, or memory where sessions live in memory.

Owns the table, who may see a response, how many are kept, and which sessions nobody needs any more. Knows no engine:
a session is a name and a number of tokens. What is deleted stays hidden while a later response goes on from it, since
its items are the beginning of that one's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.store import Store

FILE = "responses.sqlite"
MIGRATIONS = (
    """
    CREATE TABLE responses (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, previous TEXT,
        session TEXT, tokens INTEGER NOT NULL, digest BLOB NOT NULL, owned INTEGER NOT NULL, whole INTEGER NOT NULL,
        hidden INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL, body TEXT NOT NULL, items TEXT NOT NULL
    );
    CREATE INDEX by_tenant ON responses (tenant, hidden, number);
    CREATE INDEX by_session ON responses (session);
    CREATE INDEX by_previous ON responses (previous)
    """,
)
"""Number n brings a file from version n to n + 1; each statement ends a line. What was released must not change."""
COLUMNS = "id, tenant, previous, session, tokens, digest, owned, whole, body, items"
UNREFERRED = "hidden AND id NOT IN (SELECT previous FROM responses WHERE previous IS NOT NULL)"
BEYOND = """
    SELECT id FROM (SELECT id, row_number() OVER newest AS place, sum(size) OVER newest AS total FROM responses
    WHERE tenant = ? AND NOT hidden WINDOW newest AS (ORDER BY number DESC))
    WHERE place > ? OR (total > ? AND place > 1)
"""


@dataclass(frozen=True)
class Stored:
    """A response that is kept.

    Attributes:
        previous: the response that it goes on from
        session, tokens: the session that holds its conversation, in the first so many tokens; None: none does
        digest: of those tokens
        owned: the session is there for responses alone, and goes with the last of them
        whole: the items of the chain tell all that was read; else it began in a session of the user's
        body: as clients get it
        items: its own input
    """

    id: str
    tenant: str
    previous: str | None
    session: str | None
    tokens: int
    digest: bytes
    owned: bool
    whole: bool
    body: dict[str, Any]
    items: list[dict[str, Any]]


class ResponseStore:
    """One file, or memory, for any number of threads; errors are StoreErrors.

    Args:
        folder: where the file lies; None keeps everything in memory
        most, most_bytes: what is kept for a tenant, the newest responses
    """

    def __init__(self, folder: Path | None, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._store = Store(folder and folder / FILE, MIGRATIONS)

    def close(self) -> None:
        self._store.close()

    def get(self, id: str, tenant: str) -> Stored | None:
        """The tenant's response of this id."""
        row = self._row(id, "AND tenant = ? AND NOT hidden", tenant)
        return _stored(row) if row else None

    def chain(self, last: Stored) -> list[Stored]:
        """The responses that `last` goes on from, oldest first, and itself."""
        found = [last]
        while (previous := found[-1].previous) is not None and (row := self._row(previous)):
            found.append(_stored(row))
        return found[::-1]

    def put(self, new: Stored, replaces: str | None = None) -> list[str]:
        """Keep a response; the sessions that nobody needs any more.

        Args:
            replaces: a session whose tokens `new.session` begins with: responses in it are found there from now on
        """
        with self._store.transaction():
            body, items = json.dumps(new.body), json.dumps(new.items)
            facts = (new.id, new.tenant, new.previous, new.session, new.tokens, new.digest, new.owned, new.whole)
            told = (*facts, body, items, len(body) + len(items))
            self._store.execute(f"INSERT INTO responses ({COLUMNS}, size) VALUES ({', '.join('?' * len(told))})", *told)
            gone = self._move(replaces, new) if replaces else []
            beyond = self._store.execute(BEYOND, new.tenant, self._most, self._most_bytes)
            return gone + self._hide([id for (id,) in beyond])

    def delete(self, id: str, tenant: str) -> list[str] | None:
        """Forget a response; the sessions that nobody needs any more, None if the tenant has no such response."""
        if self.get(id, tenant) is None:
            return None
        with self._store.transaction():
            return self._hide([id])

    def _move(self, session: str, new: Stored) -> list[str]:
        """Unless a later response stands in it: then it is needed for what `new` does not go on from."""
        [(latest,)] = self._store.execute("SELECT max(tokens) FROM responses WHERE session = ?", session)
        [(mark,)] = self._store.execute("SELECT tokens FROM responses WHERE id = ?", new.previous)
        if latest is None or latest > mark:
            return []
        self._store.execute("UPDATE responses SET session = ? WHERE session = ?", new.session, session)
        return [session]

    def _hide(self, ids: list[str]) -> list[str]:
        marks = ", ".join("?" * len(ids))
        self._store.execute(f"UPDATE responses SET hidden = 1 WHERE id IN ({marks})", *ids)
        needed = "SELECT session FROM responses WHERE NOT hidden AND session IS NOT NULL"
        unneeded = f"FROM responses WHERE hidden AND owned AND session NOT IN ({needed})"
        gone = [session for (session,) in self._store.execute(f"SELECT DISTINCT session {unneeded}")]
        self._store.execute("UPDATE responses SET session = NULL WHERE hidden")
        while self._store.execute(f"DELETE FROM responses WHERE {UNREFERRED} RETURNING id"):
            pass
        return gone

    def _row(self, id: str, condition: str = "", *parameters: str) -> tuple[Any, ...] | None:
        sql = f"SELECT {COLUMNS} FROM responses WHERE id = ? {condition}"
        return next(iter(self._store.execute(sql, id, *parameters)), None)


def _stored(row: tuple[Any, ...]) -> Stored:
    id, tenant, previous, session, tokens, digest, owned, whole, body, items = row
    facts = (id, tenant, previous, session, tokens, digest, bool(owned), bool(whole))
    return Stored(*facts, json.loads(body), json.loads(items))
