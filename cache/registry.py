"""The sessions that are kept: named ones by id and owner, finished anonymous ones by their prefix until room is needed.

Owns who may see a session and which one is dropped first. Does not compute anything.
"""

from __future__ import annotations

import secrets
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from cache.index import IndexShape
from cache.session import Session, chain
from cache.store import BlockStore


class SessionRegistry:
    """All sessions of a store.

    Args:
        store: where their blocks live
        shapes: what is kept of a sealed block, as Session takes it
        fingerprint: of model and cache settings; blocks of another fingerprint are never shared
    """

    def __init__(self, store: BlockStore, shapes: Sequence[IndexShape | None], fingerprint: bytes) -> None:
        self.store = store
        self._shapes = shapes
        self._fingerprint = fingerprint
        self._named: dict[tuple[str, str], Session] = {}
        self._kept: OrderedDict[str, Session] = OrderedDict()  # anonymous, least recently used first
        self._prefixes: dict[bytes, dict[Session, int]] = {}  # chained hash -> who holds that many blocks

    def create(self, tenant: str) -> Session:
        """A new named session."""
        return self._name(tenant, self.anonymous(tenant))

    def anonymous(self, tenant: str) -> Session:
        """A new session that nobody can ask for by name."""
        salt = self._fingerprint + tenant.encode()
        return Session(secrets.token_hex(12), self.store, self._shapes, salt)

    def get(self, session_id: str, tenant: str) -> Session | None:
        """The tenant's session of this id."""
        return self._named.get((tenant, session_id))

    def named(self, tenant: str | None = None) -> list[Session]:
        """The tenant's named sessions, oldest first; without a tenant, everybody's."""
        return [session for (owner, _), session in self._named.items() if tenant in (None, owner)]

    def fork(self, session: Session, tenant: str) -> Session:
        """A named session with the same past."""
        return self._name(tenant, session.fork(secrets.token_hex(12)))

    def branch(self, session: Session) -> Session:
        """An anonymous session with the same tokens, of which at least the last is left to compute."""
        size = self.store.layout.text_per_block
        keep = min(session.sealed, (len(session.tokens) - 1) // size)
        branch = session.fork(secrets.token_hex(12), keep)
        branch.append(session.tokens[keep * size :])
        return branch

    def delete(self, session: Session, tenant: str) -> None:
        """Forget a named session and give its blocks back."""
        del self._named[tenant, session.id]
        self._forget(session)

    def _name(self, tenant: str, session: Session) -> Session:
        self._named[tenant, session.id] = session
        return session

    def unmatched(self, tokens: Sequence[int], tenant: str) -> Session:
        """As `match`, when nothing is to be shared."""
        return self.anonymous(tenant)

    def match(self, tokens: Sequence[int], tenant: str) -> Session:
        """An anonymous session that already holds the longest known prefix of `tokens`, short of the last one.

        At least one token is left to compute, so that there are logits to sample from.
        """
        found: tuple[Session, int] | None = None
        size = self.store.layout.text_per_block
        fresh = self.anonymous(tenant)
        digest = fresh.hashes[0]
        for start in range(0, len(tokens) - size, size):
            digest = chain(digest, array("l", tokens[start : start + size]))
            holders = self._prefixes.get(digest)
            if holders is None:
                break
            found = next(reversed(holders.items()))
        if found is None:
            return fresh
        session, blocks = found
        if session.id in self._kept:
            self._kept.move_to_end(session.id)
        match = session.fork(fresh.id, blocks)
        match.parent = None
        return match

    def publish(self, session: Session) -> None:
        """Let others of the same tenant find the session's sealed blocks."""
        for blocks in range(session.sealed, 0, -1):
            holders = self._prefixes.setdefault(session.hashes[blocks], {})
            if session in holders:
                break  # what it held when it was last published is known
            holders[session] = blocks

    def keep(self, session: Session) -> None:
        """Retain a finished anonymous session until room is needed."""
        session.trim()
        self.publish(session)
        self._kept[session.id] = session

    def evict(self) -> bool:
        """Drop the least recently used anonymous session; False if there is none."""
        if not self._kept:
            return False
        _, session = self._kept.popitem(last=False)
        self._forget(session)
        return True

    def _forget(self, session: Session) -> None:
        for digest in session.hashes[1:]:
            holders = self._prefixes.get(digest, {})
            holders.pop(session, None)
            if not holders:
                self._prefixes.pop(digest, None)
        session.close()

    def check(self) -> None:
        """Assert that no block is lost or counted wrongly, between steps and with no request running."""
        self.store.check([s.blocks for s in (*self._named.values(), *self._kept.values())])

    def __len__(self) -> int:
        return len(self._named)
