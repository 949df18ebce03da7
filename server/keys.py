"""API keys: the file that holds them, and which tenant a key belongs to.

Owns the file's format and its checks. Knows no HTTP and no limits' meaning.

A key is kept as its SHA-256. A slow hash (argon2, bcrypt) protects what people think up, by making each guess
dear; a key of ours is 256 random bits, which nobody guesses at any speed, and a slow hash would let strangers burn
the server's time with wrong keys.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

PREFIX = "cairn_"  # lets scanners for leaked secrets find keys
# Shorter than a hash, which is the name of a tenant whose key is in the environment.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Role = Literal["user", "metrics", "admin"]
LARGEST = 4 << 20


class KeysError(ValueError):
    """The keys file cannot be used; the message says what to change."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Part):
    """Limits of one tenant: None takes the server's default, 0 sets no limit."""

    requests_per_minute: int | None = Field(default=None, ge=0)
    tokens_per_minute: int | None = Field(default=None, ge=0)
    concurrent_requests: int | None = Field(default=None, ge=0)
    session_tokens: int | None = Field(default=None, ge=0)
    sessions: int | None = Field(default=None, ge=0)

    def over(self, defaults: Limits) -> Limits:
        """With the defaults where nothing is said."""
        return Limits(**{**defaults.model_dump(), **self.model_dump(exclude_none=True)})


class Key(_Part):
    """One key: `user` keys use the API as their tenant, `metrics` keys read /metrics, `admin` keys /admin as well."""

    sha256: Hash
    tenant: Name | None = None
    role: Role = "user"
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None

    @model_validator(mode="after")
    def _has_its_tenant(self) -> Key:
        if (self.role == "user") != (self.tenant is not None):
            raise ValueError("a key with the role user needs a tenant, others have none")
        return self

    @property
    def id(self) -> str:
        """What to call it by: the beginning of its hash, which tells nothing of the key."""
        return self.sha256[:12]

    @property
    def expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)


class TenantEntry(_Part):
    """A tenant's own limits, and under which name its sessions are kept, if it is another."""

    limits: Limits = Limits()
    sessions_of: Hash | None = None


class KeysFile(_Part):
    """All of the file."""

    tenants: dict[Name, TenantEntry] = Field(default_factory=dict)
    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> KeysFile:
        hashes = [key.sha256 for key in self.keys]
        if len(set(hashes)) < len(hashes):
            raise ValueError("a key is listed twice")
        owners = [entry.sessions_of for entry in self.tenants.values() if entry.sessions_of]
        if len(set(owners)) < len(owners):
            raise ValueError("two tenants have the same sessions_of: they would see each other's sessions")
        return self

    def tenant(self, name: str) -> TenantEntry:
        """A tenant need not be listed."""
        return self.tenants.get(name) or TenantEntry()

    def owner(self, name: str) -> str:
        """The name under which the engine keeps a tenant's sessions."""
        return self.tenant(name).sessions_of or name


def new_key() -> str:
    """A key that nobody guesses."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def find(hashed: str, hashes: Iterable[str]) -> str | None:
    """The equal one of `hashes`; each is compared, so that the time does not tell which was close."""
    found = None
    for each in hashes:
        if hmac.compare_digest(hashed, each):
            found = each
    return found


def read_keys(path: Path) -> KeysFile:
    """The file's content; KeysError if it cannot be read or is wrong."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise KeysError(f"keys_file: {path} is larger than {LARGEST} bytes")
        return KeysFile.model_validate_json(text)
    except OSError as error:
        raise KeysError(f"keys_file: {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise KeysError(f"keys_file: {path}: {place}: {first['msg'].removeprefix('Value error, ')}") from None


def write_keys(path: Path, content: KeysFile) -> None:
    """Replace the file at once, so that a server never reads half of it; only its owner may read it."""
    text = json.dumps(content.model_dump(mode="json", exclude_defaults=True), indent=2) + "\n"
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")  # 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
