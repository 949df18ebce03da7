"""Requests that may come twice: the first with a key does the work, each later one gets its answer again.

Owns the answers that are kept, for how long, and that equal requests at the same moment do the work once. An answer
that is an error is not kept: who repeats it tries again. Knows no route.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Header
from fastapi.responses import JSONResponse

from engine import StoreError
from server.errors import ApiError
from server.store import Store

log = logging.getLogger("cairn")
HEADER, REPLAYED = "Idempotency-Key", "Idempotent-Replayed"
MAX_CHARACTERS = 255
SECONDS = 24 * 3600.0
MOST = 10_000
"""Keys of one tenant; with one more the oldest is forgotten."""
FILE = "idempotency.sqlite"

MIGRATIONS = (
    """
    CREATE TABLE answers (
        number INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, key TEXT NOT NULL, request BLOB NOT NULL,
        status INTEGER NOT NULL, body TEXT NOT NULL, headers TEXT NOT NULL, created REAL NOT NULL, UNIQUE (tenant, key)
    );
    CREATE INDEX by_tenant ON answers (tenant, number);
    CREATE INDEX by_age ON answers (created)
    """,
)

IdempotencyKey = Annotated[str | None, Header(alias=HEADER)]
KEPT = ("x-session-id",)
"""Headers of an answer that are given again; others, such as an ETag, speak of the moment."""


class Idempotency:
    """The answers of requests that had a key.

    Args:
        folder: where they outlive the server; None keeps them in memory
    """

    def __init__(self, folder: Path | None) -> None:
        self._store = Store(folder and folder / FILE, MIGRATIONS)
        self._locks: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}  # and how many hold or want each

    async def once(
        self, tenant: str, key: str | None, request: bytes, answer: Callable[[], Awaitable[JSONResponse]]
    ) -> JSONResponse:
        """What `answer` gives, or gave for this key; without a key, what it gives.

        Args:
            request: stands for the whole request, see `fingerprint`

        Raises:
            ApiError: the key is none, or stands for another request
        """
        if key is None:
            return await answer()
        check_key(key)
        async with self._alone(tenant, key):
            known = await asyncio.to_thread(self._find, tenant, key, request)
            if known is not None:
                return known
            given = await answer()
            await asyncio.to_thread(self._keep, tenant, key, request, given)
            return given

    def close(self) -> None:
        """Let go of the file."""
        self._store.close()

    @asynccontextmanager
    async def _alone(self, tenant: str, key: str) -> AsyncIterator[None]:
        """Nobody else has this key inside; a lock is there for as long as somebody wants it."""
        lock, users = self._locks.get((tenant, key), (asyncio.Lock(), 0))
        self._locks[tenant, key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop((tenant, key))
            if users > 1:
                self._locks[tenant, key] = lock, users - 1

    def _find(self, tenant: str, key: str, request: bytes) -> JSONResponse | None:
        columns = "SELECT request, status, body, headers FROM answers WHERE tenant = ? AND key = ? AND created > ?"
        for of, status, body, headers in self._store.execute(columns, tenant, key, time.time() - SECONDS):
            if of != request:
                message = f"{HEADER}: this key was used for another request; take a new one for each request"
                raise ApiError(422, message, HEADER, "idempotency_key_reused")
            return JSONResponse(json.loads(body), status, {**json.loads(headers), REPLAYED: "true"})
        return None

    def _keep(self, tenant: str, key: str, request: bytes, given: JSONResponse) -> None:
        now, body = time.time(), bytes(given.body).decode()
        headers = json.dumps({name: text for name, text in given.headers.items() if name in KEPT})
        columns = "INSERT OR REPLACE INTO answers (tenant, key, request, status, body, headers, created)"
        oldest = "SELECT number FROM answers WHERE tenant = ? ORDER BY number DESC LIMIT 1 OFFSET ?"
        row = (tenant, key, request, given.status_code, body, headers, now)
        try:
            with self._store.transaction():
                self._store.execute(f"{columns} VALUES (?, ?, ?, ?, ?, ?, ?)", *row)
                self._store.execute("DELETE FROM answers WHERE created <= ?", now - SECONDS)
                self._store.execute(
                    f"DELETE FROM answers WHERE tenant = ? AND number <= ({oldest})", tenant, tenant, MOST
                )
        except StoreError as error:  # what was asked for is done; a repetition would do it again
            log.error("an answer is not kept for its %s: %s", HEADER, error)


def check_key(key: str) -> None:
    """ApiError if this cannot be a key."""
    if not 0 < len(key) <= MAX_CHARACTERS or not key.isascii() or not key.isprintable():
        raise ApiError(400, f"{HEADER}: give 1 to {MAX_CHARACTERS} printable ASCII characters", HEADER, "invalid_value")


def fingerprint(*parts: str | bytes) -> bytes:
    """Stands for a request: equal for equal parts only."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()
