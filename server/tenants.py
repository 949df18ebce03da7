"""Who is asking, and what they may use: keys of the environment and of a file that may change while the server runs.

Owns the way from a presented key to a caller, and each tenant's account. Knows no routes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from engine import Quota
from server.keys import Key, KeysError, KeysFile, Limits, Role, find, hash_of, read_keys
from server.limits import Accounts
from server.settings import Settings

log = logging.getLogger("cairn")
LOOK_SECONDS = 1.0
"""How often at most the keys file is looked at; it is read only when it has changed."""

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Caller:
    """Whom a key stands for: its role, and the tenant under whose name sessions and prefixes are kept."""

    role: Role
    tenant: str = ""
    sees_metrics: bool = True
    expires: datetime | None = None

    @property
    def expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)


ANYBODY = Caller("user")
"""Of a server without keys."""


class Tenants:
    """All keys and tenants of a server; raises KeysError if the keys file cannot be used."""

    def __init__(self, settings: Settings) -> None:
        self._path = None if settings.keys_file is None else Path(settings.keys_file)
        self._open = settings.without_keys
        self._defaults = Limits(
            requests_per_minute=settings.tenant_requests_per_minute,
            tokens_per_minute=settings.tenant_tokens_per_minute,
            concurrent_requests=settings.tenant_concurrent_requests,
            session_tokens=settings.tenant_tokens,
            sessions=settings.tenant_sessions,
        )
        self._environment = _of_environment(settings)
        self._lock = threading.Lock()
        self._stamp: Stamp | None = None
        self._looked = time.monotonic()
        self.file = KeysFile()
        self._use(self.file)
        if self._path is not None:
            self.reload()
        self.accounts = Accounts(self.limits_of)

    def caller(self, authorization: bytes) -> Caller | None:
        """Whose key an Authorization header shows; None if it is nobody's."""
        self._look()
        scheme, _, key = authorization.partition(b" ")
        found = find(hash_of(key.strip()), self._callers)
        caller = self._callers.get(found or "") if scheme.lower() == b"bearer" else None
        if caller is None or caller.expired:
            return ANYBODY if self._open else None
        return caller

    def limits_of(self, tenant: str) -> Limits:
        """A tenant's limits."""
        return self._limits.get(tenant, self._defaults)

    def quota(self, tenant: str) -> Quota:
        """What the engine lets a tenant keep."""
        limits = self.limits_of(tenant)
        return Quota(limits.session_tokens or None, limits.sessions or None)

    def owners(self) -> Mapping[str, str]:
        """All tenants: under which name the engine keeps their sessions, by the name that people use."""
        of_keys = {key.tenant for key in self.file.keys if key.tenant is not None}
        named = {name: self.file.owner(name) for name in sorted(of_keys | self.file.tenants.keys())}
        users = {caller.tenant for caller in self._environment.values() if caller.role == "user"}
        unnamed = users - set(named.values())
        return {**named, **{owner: owner for owner in unnamed}, **({"": ""} if self._open else {})}

    def reload(self) -> None:
        """Read the keys file again; KeysError if it cannot be used, and the keys stay as they were."""
        if self._path is None:
            return
        with self._lock:
            self._stamp = _stamp(self._path)
            self._use(read_keys(self._path))

    def _look(self) -> None:
        if self._path is None or time.monotonic() < self._looked + LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        if _stamp(self._path) != self._stamp:
            self.reload_or_log()

    def reload_or_log(self) -> None:
        """`reload` for when nobody is there to hear what is wrong."""
        try:
            self.reload()
            log.info("keys_file: %d keys are in use", len(self.file.keys))
        except KeysError as error:
            log.error("%s; the keys stay as they were", error)

    def _use(self, file: KeysFile) -> None:
        # Each is replaced as a whole: other threads read them without the lock.
        self._limits = {file.owner(name): entry.limits.over(self._defaults) for name, entry in file.tenants.items()}
        self._callers = {**self._environment, **{key.sha256: _of_file(key, file) for key in file.keys}}
        self.file = file


def _of_environment(settings: Settings) -> dict[str, Caller]:
    """The tenant of such a key is its hash."""
    hashes = [hash_of(key.encode()) for key in settings.api_keys]
    users = {hashed: Caller("user", hashed) for hashed in hashes}
    return users | ({hash_of(settings.admin_key.encode()): Caller("admin")} if settings.admin_key else {})


def _of_file(key: Key, file: KeysFile) -> Caller:
    if key.tenant is None:
        return Caller(key.role, expires=key.expires)
    return Caller(key.role, file.owner(key.tenant), sees_metrics=False, expires=key.expires)


def _stamp(path: Path) -> Stamp | None:
    """What changes when the file does."""
    try:
        told = path.stat()
    except OSError:
        return None
    return told.st_mtime_ns, told.st_size, told.st_ino
