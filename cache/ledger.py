"""What the catalogue has been told of sessions, and what it is still owed.

A disk that fails stops nobody: what could not be told is told when it works again. Decides nothing about sessions, and
does not know their blocks. Without an archive there is nobody to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from cache.archive import Archive
from cache.catalogue import Catalogue, SessionRecord
from cache.readings import Readings
from cache.session import Session
from cache.turns import Turns


@dataclass
class Told:
    """How many tokens of a session the catalogue has, and how many of them are still the session's."""

    tokens: int = 0
    good: int = 0


class Ledger:
    """The sessions of one model.

    Args:
        archive: whose catalogue is told
        model: sessions of another one are left alone
    """

    def __init__(self, archive: Archive | None, model: bytes) -> None:
        self._archive = archive
        self._model = model
        self._told: dict[str, Told] = {}
        self._owed: dict[str, Session | None] = {}  # by id, what the catalogue does not know yet; None is gone

    @property
    def _catalogue(self) -> Catalogue:
        assert self._archive is not None
        return self._archive.catalogue

    def _tell(self, action: Callable[[], None]) -> bool:
        return self._archive is not None and self._archive.attempt(action)

    # -- telling ---------------------------------------------------------------------------------------------

    def save(self, session: Session) -> bool:
        """Have all tokens of a session in the catalogue; what fails is owed, see `catch_up`."""
        if self._archive is None:
            return False
        saved = self._tell(lambda: self._save(session))
        if saved:
            self._owed.pop(session.id, None)
        else:
            self._owed[session.id] = session
        return saved

    def update(self, session: Session) -> bool:
        """As `save`, when more than its tokens has changed."""
        if self._archive is not None:
            self._owed[session.id] = session
        return self.save(session)

    def cut(self, session: Session) -> bool:
        """As `update`, when a session has forgotten its last tokens."""
        if told := self._told.get(session.id):
            told.good = min(told.good, len(session.tokens))
        return self.update(session)

    def fork(self, session: Session, fork: Session) -> None:
        """A session has been forked: its text is copied within the catalogue."""
        tokens = len(session.tokens)
        if self.save(session) and self._tell(partial(self._catalogue.fork, self._record(fork), session.id, tokens)):
            self._told[fork.id] = Told(tokens, tokens)
            fork.turns.told()

    def delete(self, session: Session) -> None:
        """A session is gone."""
        self._owed.pop(session.id, None)
        if self._told.pop(session.id, None) is not None:
            self._owed[session.id] = None
            self.catch_up()

    def catch_up(self) -> None:
        """Tell what could not be told before, as far as it can be told now."""
        for name, session in list(self._owed.items()):
            if session is not None:
                done = self.save(session)
            elif done := self._tell(partial(self._catalogue.delete, name)):
                del self._owed[name]
            if not done:
                return

    def _save(self, session: Session) -> None:
        told = self._told.get(session.id)
        known = told or Told()
        if told is not None and len(session.tokens) == known.good == known.tokens and session.id not in self._owed:
            return
        with self._catalogue.transaction():
            self._write(session, known, new=told is None)
        self._told[session.id] = Told(len(session.tokens), len(session.tokens))
        session.turns.told()

    def _write(self, session: Session, known: Told, *, new: bool) -> None:
        now, catalogue = self._record(session), self._catalogue
        if new:
            catalogue.create(now)
        if known.good < known.tokens:
            catalogue.cut(session.id, known.good)
        catalogue.append(session.id, known.good, session.tokens[known.good :], session.readings.since(known.good))
        if turns := session.turns.untold():
            catalogue.add_turns(session.id, turns, session.turns.oldest)
        told = {"used": now.used, "expires": now.expires, "blocks_per_head": now.blocks_per_head}
        catalogue.update(session.id, pinned=now.pinned, **told)

    def _record(self, session: Session) -> SessionRecord:
        """What the catalogue keeps of a session besides its text and its turns."""
        expires = None if session.ttl is None else session.used + session.ttl
        facts = (session.id, session.tenant, self._model, session.created, session.used, session.parent, session.pinned)
        return SessionRecord(*facts, expires, session.blocks_per_head)

    # -- reading ---------------------------------------------------------------------------------------------

    def records(self) -> Iterator[SessionRecord]:
        """Stored sessions of this model, oldest first."""
        return (known for known in self._catalogue.sessions() if known.fingerprint == self._model)

    def restore(self, known: SessionRecord, session: Session) -> None:
        """Make a new session what is stored of one, but for its blocks."""
        session.id, session.parent = known.id, known.parent
        session.append(self._catalogue.tokens(known.id))
        session.turns = Turns(self._catalogue.turns(known.id))
        session.turns.told()
        session.readings = Readings(self._catalogue.readings(known.id))
        session.created, session.used = known.created, known.used
        session.pinned, session.blocks_per_head = known.pinned, known.blocks_per_head
        session.ttl = None if known.expires is None else known.expires - known.used
        self._told[session.id] = Told(len(session.tokens), len(session.tokens))
