"""The sessions that are kept: named ones by id and owner, finished anonymous ones by their prefix until room is needed.

Owns who may see a session, what is found of it after a restart, and what goes first when room is needed: finished
anonymous prompts, then keys and values of the named session that was not used for longest (its text stays, and is
computed again). Pinned and busy sessions stay as they are. Does not compute anything.
"""

from __future__ import annotations

import logging
import secrets
import time
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

from cache.catalogue import SessionRecord
from cache.errors import DamagedBlock
from cache.index import IndexShape
from cache.ledger import Ledger
from cache.readings import Reading, Readings
from cache.session import Session, chain
from cache.store import BlockStore
from cache.waking import Waking

logger = logging.getLogger(__name__)


class SessionRegistry:
    """All sessions of a store.

    Args:
        store: where their blocks live
        shapes: what is kept of a sealed block, as Session takes it
        fingerprint: of model and cache settings; blocks of another fingerprint are never shared
        model: of the model alone; stored sessions of another model are left alone
    """

    def __init__(
        self, store: BlockStore, shapes: Sequence[IndexShape | None], fingerprint: bytes, model: bytes = b""
    ) -> None:
        self.store = store
        self.busy: set[str] = set()
        """Ids of sessions in which a request runs."""
        self.evictions: Counter[str] = Counter()
        """Sessions that had to go, or whose keys and values had to, by reason."""
        self.damaged = 0
        """Stored blocks that were not what they should be."""
        self.restores: list[float] = []
        """Seconds that it took to bring sessions back, since somebody last looked."""
        self._shapes = shapes
        self.fingerprint = fingerprint
        self._ledger = Ledger(store.archive, model)
        self._named: dict[tuple[str, str], Session] = {}
        self._kept: OrderedDict[str, Session] = OrderedDict()  # anonymous, least recently used first
        self._prefixes: dict[bytes, dict[Session, int]] = {}  # chained hash -> who holds that many blocks
        if store.archive is not None:
            self._load()

    # -- named sessions --------------------------------------------------------------------------------------

    def create(self, tenant: str, *, pinned: bool = False, ttl: float | None = None) -> Session:
        """A new named session.

        Args:
            pinned: it is never dropped to make room, nor when its time is over
            ttl: seconds without use after which it is deleted
        """
        session = self.anonymous(tenant)
        session.pinned, session.ttl = pinned, ttl or None
        return self._name(session)

    def anonymous(self, tenant: str) -> Session:
        """A new session that nobody can ask for by name."""
        session = Session(secrets.token_hex(12), self.store, self._shapes, self.fingerprint + tenant.encode())
        session.tenant = tenant
        return session

    def aside(self, session: Session) -> Session:
        """A session with the same past that nobody can ask for by name; who asked for it closes it."""
        return session.fork(secrets.token_hex(12))

    def add(self, session: Session) -> None:
        """Give an anonymous session that was put together elsewhere a name."""
        self._name(session)
        self.rest(session)

    def get(self, session_id: str, tenant: str) -> Session | None:
        """The tenant's session of this id."""
        return self._named.get((tenant, session_id))

    def named(self, tenant: str | None = None) -> list[Session]:
        """The tenant's named sessions, oldest first; without a tenant, everybody's."""
        return [session for (owner, _), session in self._named.items() if tenant in (None, owner)]

    def fork(self, session: Session) -> Session:
        """A named session with the same past."""
        fork = session.fork(secrets.token_hex(12))
        self._ledger.fork(session, fork)
        return self._name(fork)

    def delete(self, session: Session) -> None:
        """Forget a named session and give its blocks back."""
        del self._named[session.tenant, session.id]
        self._ledger.delete(session)
        self._forget(session)

    def change(self, session: Session, *, pinned: bool | None = None, ttl: float | None = None) -> None:
        """Set what is not None; a ttl of 0 means none."""
        session.pinned = session.pinned if pinned is None else pinned
        session.ttl = session.ttl if ttl is None else ttl or None
        self._ledger.update(session)

    def cut(self, session: Session, text: int) -> None:
        """Let a named session forget all but its first tokens; forks keep what they share with it."""
        self._unpublish(session, session.hashes[text // self.store.layout.text_per_block + 1 :])
        session.cut(text)
        self._ledger.cut(session)

    def _name(self, session: Session) -> Session:
        self._named[session.tenant, session.id] = session
        self.save(session)
        return session

    def __len__(self) -> int:
        return len(self._named)

    # -- what outlives the process ---------------------------------------------------------------------------

    def save(self, session: Session) -> None:
        """Have all tokens of a session that has a name in the catalogue."""
        if (session.tenant, session.id) in self._named:
            self._ledger.save(session)

    def catch_up(self) -> None:
        """Tell the catalogue what it could not be told before, as far as it can be told now."""
        self._ledger.catch_up()

    def close(self) -> None:
        """Store what can be stored, and let go of the folder."""
        if self.store.archive is not None:
            self.catch_up()
            self.store.archive.close()

    def _load(self) -> None:
        """Sessions of this model that the catalogue knows, with as many of their blocks as the disk has."""
        assert self.store.archive is not None
        stored = self.store.archive.catalogue.blocks(self.store.archive.fingerprint)
        found = {digest: slot for digest, slot in stored.items() if slot < self.store.tier.capacity}
        self.store.claim(found)
        for known in self._ledger.records():
            self._restore(known)
        self.store.release(list(found.values()))  # they are the sessions' now, or nobody's

    def _restore(self, known: SessionRecord) -> None:
        session = self.anonymous(known.tenant)
        self._ledger.restore(known, session)
        blocks, hashes = [], []
        for digest in self._chain(session.tokens, session.readings, session.hashes[0]):
            slot = self.store.slot(digest)
            if slot is None:
                break
            blocks.append(slot)
            hashes.append(digest)
        session.adopt(blocks, hashes)
        session.park()
        self._named[session.tenant, session.id] = session
        self.publish(session)

    def _chain(self, tokens: Sequence[int], readings: Readings, digest: bytes, *, spare: int = 0) -> Iterator[bytes]:
        """Hashes of the blocks that tokens fill which are read so, if `spare` of them must be left."""
        size = self.store.layout.text_per_block
        for start in range(0, len(tokens) - spare - size + 1, size):
            mark = readings.mark(start, start + size)
            digest = chain(digest, array("l", tokens[start : start + size]), mark)
            yield digest

    def waking(self, session: Session) -> Waking:
        """The way back of a parked session's indexes; `woken` takes it when it has been gone. Who begins it closes it.

        What another session holds now of the same beginning is not read again.
        """
        for count in range(session.sealed, 0, -1):
            for holder in self._prefixes.get(session.hashes[count], ()):
                if not holder.parked and holder.blocks[:count] == session.blocks[:count]:
                    return Waking(session, holder.indexes_of(count), count)
        return Waking(session, session.indexes_of(0))

    def woken(self, waking: Waking) -> None:
        """Give a session its indexes back; what of it is damaged is forgotten, to be computed again."""
        session, known = waking.session, waking.count
        if known < session.sealed:
            assert waking.damage is not None, "it is not back yet"
            self._found_damage(waking.damage)
            self.store.lose(session.blocks[known])
            self._rewind(session, known)
        elif known > session.sealed:  # what was found to be damaged meanwhile
            waking.indexes = [index and index.fork(session.sealed) for index in waking.indexes]
        session.wake(waking.indexes)
        self.store.balance()
        self.restores.append(time.perf_counter() - waking.begun)

    def _found_damage(self, error: Exception) -> None:
        self.damaged += 1
        logger.warning("%s; it is computed again", error)

    def mend(self, damage: DamagedBlock, running: Iterable[Session]) -> None:
        """Let every session forget a damaged block and what follows it."""
        self._found_damage(damage)
        self.store.lose(damage.slot)  # whoever else holds it still: what is computed now is not to be taken for it
        for session in {*self._named.values(), *self._kept.values(), *running}:
            if damage.slot in session.blocks:
                self._rewind(session, session.blocks.index(damage.slot))

    def _rewind(self, session: Session, sealed: int) -> None:
        self._unpublish(session, session.hashes[sealed + 1 :])
        session.rewind(sealed)

    # -- prefixes --------------------------------------------------------------------------------------------

    def branch(self, session: Session) -> Session:
        """An anonymous session with the same tokens, of which at least the last is left to compute."""
        size = self.store.layout.text_per_block
        keep = min(session.sealed, (len(session.tokens) - 1) // size)
        branch = session.fork(secrets.token_hex(12), keep)
        branch.follow(session)
        return branch

    def start(self, tokens: Sequence[int], tenant: str, reading: Reading | None = None, *, share: bool) -> Session:
        """An anonymous session of these tokens, read so; with `share` it has what is known of them."""
        session = self.match(tokens, tenant, Readings.whole(reading)) if share else self.anonymous(tenant)
        session.append(tokens[len(session.tokens) :], reading)
        return session

    def match(self, tokens: Sequence[int], tenant: str, readings: Readings | None = None) -> Session:
        """An anonymous session that already holds the longest known prefix of `tokens`, short of the last one.

        At least one token is left to compute, so that there are logits to sample from. Only what was read as these
        `readings` tell is found; None is as the server does.
        """
        known: dict[Session, int] = {}
        fresh = self.anonymous(tenant)
        blocks = 0
        for count, digest in enumerate(self._chain(tokens, readings or Readings(), fresh.hashes[0], spare=1), 1):
            holders = self._prefixes.get(digest)
            if holders is None:
                break
            known, blocks = holders, count
        if not known:
            return fresh
        latest = next(reversed(known))
        found = next((holder for holder in reversed(known) if not holder.parked), latest)
        if found.id in self._kept:
            self._kept.move_to_end(found.id)
        match = found.fork(fresh.id, min(blocks, found.sealed))
        match.parent = None
        return match

    def go_on(
        self, session: Session, tokens: Sequence[int], reading: Reading | None = None, *, share: bool = True
    ) -> None:
        """Append to a named session, and have it stored: what is acknowledged from here on is kept.

        Args:
            share: a session that has computed nothing may begin with what is known of its text
        """
        session.begin_turn(tokens, reading)
        self.save(session)
        if share and not session.blocks:
            session.take_over(self.match(session.tokens, session.tenant, session.readings))

    def publish(self, session: Session) -> None:
        """Let others of the same tenant find the session's sealed blocks."""
        for blocks in range(session.sealed, 0, -1):
            holders = self._prefixes.setdefault(session.hashes[blocks], {})
            if session in holders:
                break  # what it held when it was last published is known
            holders[session] = blocks

    def _unpublish(self, session: Session, hashes: list[bytes]) -> None:
        for digest in hashes:
            holders = self._prefixes.get(digest, {})
            holders.pop(session, None)
            if not holders:
                self._prefixes.pop(digest, None)

    def keep(self, session: Session) -> None:
        """Retain a finished anonymous session until room is needed."""
        self.rest(session)
        self._kept[session.id] = session

    def rest(self, session: Session) -> None:
        """Nothing runs in a session any more: let others find its blocks, and let its memory be used."""
        self._settle(session)
        self.publish(session)

    def _settle(self, session: Session) -> None:
        """Give back what holds no full block: an open one could not leave the memory, and is computed again."""
        session.trim()
        if self.store.tier.pins:
            self._rewind(session, session.sealed)

    # -- making room -----------------------------------------------------------------------------------------

    def evict(self) -> bool:
        """Give up what was not used for longest; False if there is nothing to give up."""
        if self._drop_prefix():
            return True
        if self.store.archive is None:
            return False
        idle = self._longest_idle(lambda session: bool(session.blocks))
        if idle is None:
            return False
        self._rewind(idle, 0)
        self.evictions["room"] += 1
        return True

    def make_room(self) -> bool:
        """Make room for a block; with a block free, it is memory that is short. False if nothing can be given up."""
        return self.spare() if self.store.free else self.evict()

    def spare(self) -> bool:
        """Free memory without giving up what a named session has on the disk; False if there is nothing to spare."""
        done = self.store.archive is not None and (self.park() or self._drop_prefix())
        self.store.balance()
        return done

    def _drop_prefix(self) -> bool:
        """Forget the finished anonymous prompt that was not used for longest; False if there is none."""
        if not self._kept:
            return False
        _, session = self._kept.popitem(last=False)
        self._forget(session)
        self.evictions["prefix"] += 1
        return True

    def held(self) -> list[Session]:
        """Named sessions whose blocks cannot be taken from them."""
        if self.store.archive is None:
            return self.named()
        return [session for session in self._named.values() if self._stays(session)]

    def park(self) -> bool:
        """Leave the indexes of the session that was not used for longest to the disk; False if there is none."""
        archive = self.store.archive
        if archive is None or archive.failure or archive.behind:
            return False
        session = self._longest_idle(lambda session: not session.parked and bool(session.sealed))
        if session is None:
            return False
        self._settle(session)
        session.park()
        self.evictions["memory"] += 1
        return True

    def expire(self, now: float) -> None:
        """Delete the sessions whose time is over."""
        for session in list(self._named.values()):
            if session.ttl is not None and session.used + session.ttl <= now and not self._stays(session):
                self.delete(session)
                self.evictions["expired"] += 1

    def _longest_idle(self, fit: Callable[[Session], bool]) -> Session | None:
        idle = (session for session in self._named.values() if not self._stays(session) and fit(session))
        return min(idle, key=lambda session: session.used, default=None)

    def _stays(self, session: Session) -> bool:
        return session.pinned or session.id in self.busy

    def _forget(self, session: Session) -> None:
        self._unpublish(session, session.hashes[1:])
        session.close()

    def check(self) -> None:
        """Assert that no block is lost or counted wrongly, between steps and with no request running."""
        self.store.check([s.blocks for s in (*self._named.values(), *self._kept.values())])
