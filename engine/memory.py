"""`Memory`: the sessions of an engine as their owners see and change them, from any thread.

Owns the lock, and who may touch a session when: one in which a request runs is left alone. Computes nothing, so a
session whose past has changed is computed when it is next asked.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cache import MOST_TURNS, DamagedBlock, OutOfBlocks, Patience, Readings, Session, SessionRegistry, Turns
from engine.admission import Admission
from engine.description import SessionInfo, TurnInfo
from engine.errors import EngineStopped, InvalidParameter, InvalidSessionFile, OutOfRoom, SessionBusy, SessionNotFound
from engine.sampler import Sampler
from engine.sequence import Sequence
from engine.session_file import TOGETHER, Bytes, Origin, SessionFile, SessionWriter

FULL = "the cache is full; delete sessions or give it more memory"


class Memory:
    """See the module.

    Args:
        registry: the sessions
        admission: what may be kept
        session_ttl: seconds without use after which a session is deleted, if it does not say itself
    """

    def __init__(self, registry: SessionRegistry, admission: Admission, session_ttl: float | None) -> None:
        self._registry = registry
        self._admission = admission
        self._session_ttl = session_ttl
        self._running: dict[Sequence, Sampler] = {}
        self._damaged: list[DamagedBlock] = []  # found outside of a step, to be mended between two
        self._short = False  # a step waits for room
        self._accepting = True
        self._changed = threading.Condition()  # its lock guards everything that changes

    def create_session(self, tenant: str, *, pinned: bool = False, ttl: float | None = None) -> SessionInfo:
        """A new, empty session; `pinned` and `ttl` as SessionRegistry.create takes them."""
        with self._changed:
            self._check_accepting()
            self._admission.validate_new_session(tenant)
            ttl = self._session_ttl if ttl is None else ttl
            return self._info(self._registry.create(tenant, pinned=pinned, ttl=ttl))

    def change_session(
        self, session_id: str, tenant: str, *, pinned: bool | None = None, ttl: float | None = None
    ) -> SessionInfo:
        """Set what is not None; a ttl of 0 means none. Raises SessionNotFound."""
        with self._changed:
            self._check_accepting()
            session = self._session(session_id, tenant)
            self._registry.change(session, pinned=pinned, ttl=ttl)
            return self._info(session)

    def get_session(self, session_id: str, tenant: str) -> SessionInfo:
        """Raises SessionNotFound."""
        with self._changed:
            return self._info(self._session(session_id, tenant))

    @contextlib.contextmanager
    def holding(self, session_id: str, tenant: str) -> Iterator[SessionInfo]:
        """A session that nobody changes inside but who holds it; for short work. Raises SessionNotFound."""
        with self._changed:
            yield self._info(self._session(session_id, tenant))

    def list_sessions(self, tenant: str) -> list[SessionInfo]:
        """The tenant's sessions, oldest first."""
        with self._changed:
            return [self._info(session) for session in self._registry.named(tenant)]

    def session_tokens(self, session_id: str, tenant: str) -> list[int]:
        """All text tokens; raises SessionNotFound."""
        with self._changed:
            return self._session(session_id, tenant).tokens.tolist()

    def fork_session(self, session_id: str, tenant: str) -> SessionInfo:
        """A session with the same past, sharing its blocks; raises SessionNotFound, SessionBusy."""
        with self._changed:
            self._check_accepting()
            session = self._idle_session(session_id, tenant)
            self._admission.validate_new_session(tenant)
            return self._info(self._registry.fork(session))

    def delete_session(self, session_id: str, tenant: str) -> None:
        """Raises SessionNotFound, SessionBusy."""
        with self._changed:
            self._check_accepting()
            self._registry.delete(self._idle_session(session_id, tenant))

    # -- what was asked, and taking it back ------------------------------------------------------------------

    def session_turns(self, session_id: str, tenant: str) -> list[TurnInfo]:
        """The requests that changed a session, oldest first, as far as they are remembered; raises SessionNotFound."""
        with self._changed:
            session = self._session(session_id, tenant)
            turns = session.turns.with_ends(len(session.tokens))
            return [TurnInfo(turn.index, turn.start, turn.answer, end) for turn, end in turns]

    def rewind_session(
        self, session_id: str, tenant: str, *, turn: int | None = None, tokens: int | None = None
    ) -> SessionInfo:
        """Forget a turn and all that follows, or all but the first `tokens` tokens; one of both is given.

        Raises:
            SessionNotFound, SessionBusy
            InvalidParameter: there is no such turn, or there are fewer tokens
        """
        with self._changed:
            self._check_accepting()
            session = self._idle_session(session_id, tenant)
            keep = tokens if turn is None else self._start_of(session, turn)
            held = len(session.tokens)
            if keep is None or not 0 <= keep <= held:
                raise InvalidParameter("tokens", f"must lie between 0 and {held}, what the session holds")
            self._registry.cut(session, keep)
            return self._info(session)

    def _start_of(self, session: Session, turn: int) -> int:
        known = {each.index: each.start for each, _ in session.turns.with_ends(len(session.tokens))}
        if turn not in known:
            told = f"remembers turns {min(known)} to {max(known)}" if known else "remembers no turn"
            raise InvalidParameter("turn", f"this session {told}")
        return known[turn]

    # -- as a file -------------------------------------------------------------------------------------------

    def export_session(self, session_id: str, tenant: str, *, told: Told, kv: bool = True) -> Export:
        """A session as a file, to be read without the lock, and closed; raises SessionNotFound, SessionBusy."""
        with self._changed:
            self._check_accepting()
            session = self._registry.aside(self._idle_session(session_id, tenant))
        origin = Origin(self._registry.fingerprint.hex(), told.vocabulary, told.model)
        return Export(self, session, SessionWriter(session, origin, kv=kv, notes=told.notes))

    def import_session(self, path: Path, tenant: str, *, told: Told, kv: bool = True) -> Imported:
        """A new session that a file holds.

        Args:
            kv: use the file's keys and values, if they are of this model and these settings

        Raises:
            InvalidSessionFile: it cannot be used; nothing was done
            SessionTooLong, QuotaExceeded, OutOfRoom
        """
        file = SessionFile(path)
        if file.origin().vocabulary != told.vocabulary:
            came = f"of {file.origin().model[:200]!r} has" if file.origin().model else "has"
            raise InvalidSessionFile(f"the file's model {came} another vocabulary: its tokens are another text here")
        self._admission.validate_length(file.length)
        tokens, turns, notes = file.text(MOST_TURNS)
        text, readings = tokens.tolist(), Readings(file.runs())
        with self._changed:
            self._check_accepting()
            self._admission.validate_text(text, tenant)
            session = self._registry.anonymous(tenant)
            session.append(text)
            session.turns, session.readings, session.blocks_per_head = Turns(turns), readings, file.blocks_per_head
            session.ttl = self._session_ttl
        try:
            if kv and file.count and file.origin().fingerprint == self._registry.fingerprint.hex():
                file.check_blocks(session.layout, session.entry_bytes, session.sensible)
                for _, units, entries in file.blocks():
                    self._take_in(session, units, entries)
            with self._changed:
                self._check_accepting()
                self._admission.validate_text(text, tenant)  # of several at a time, the first ones have room
                restored = session.computed
                self._registry.add(session)
                return Imported(self._info(session), restored, notes)
        except BaseException:
            with self._changed:
                session.close()
            raise

    def _take_in(self, session: Session, units: Bytes, entries: Bytes) -> None:
        """Some blocks of a file, beside what runs, which comes first."""
        self._await_disk()
        first, patience = len(session.blocks), Patience()
        while (taken := len(session.blocks) - first) < len(units):
            with self._changed:
                self._check_accepting()
                if not self._admission.has_room(len(units) - taken, list(self._running)):
                    raise OutOfRoom(FULL)
                if not self._took_in(session, units[taken:], entries[taken:]) and not self._room_beside(patience):
                    raise OutOfRoom(FULL)

    def _await_disk(self) -> None:
        """Until it has written nearly all that there was."""
        archive, patience = self._registry.store.archive, Patience()
        while archive is not None and not archive.flush(0, left=TOGETHER):
            if archive.failure or not patience.look(lambda seconds: archive.flush(seconds, left=TOGETHER)):
                raise OutOfRoom("the disk does not take what is sent; try again later")

    def _took_in(self, session: Session, units: Bytes, entries: Bytes) -> bool:
        try:
            if not self._short:
                session.take_in(units, entries)
            return not self._short
        except OutOfBlocks:
            return False

    def _room_beside(self, patience: Patience) -> bool:
        """Make or await room, which a step can give, too: it may be reading what lies there."""
        return (not self._short and self._room(patience)) or patience.look(self._changed.wait)

    # -- room, under the lock --------------------------------------------------------------------------------

    def _reserve(self, session: Session, text: int) -> None:
        """Blocks for the first `text` tokens; raises OutOfBlocks. While it waits for them nobody else gets any."""
        patience = Patience()
        try:
            while True:
                try:
                    return session.reserve(text)
                except OutOfBlocks:
                    self._short = True
                    if not self._room(patience):
                        raise
        finally:
            self._short = False

    def _room(self, patience: Patience) -> bool:
        """Make room for a block, or let go of the lock until the disk may have made some; False if none is to come."""
        store = self._registry.store
        comes = store.free > 0 and store.behind > 0
        return (comes and patience.look(self._changed.wait)) or self._registry.make_room()

    # -- under the lock --------------------------------------------------------------------------------------

    def _check_accepting(self) -> None:
        if not self._accepting:
            raise EngineStopped("the engine is shutting down and takes no requests")

    def _session(self, session_id: str, tenant: str) -> Session:
        session = self._registry.get(session_id, tenant)
        if session is None:
            raise SessionNotFound(f"there is no session {session_id!r}")
        return session

    def _idle_session(self, session_id: str, tenant: str) -> Session:
        session = self._session(session_id, tenant)
        if session_id in self._registry.busy:
            raise SessionBusy(f"another request is running in session {session_id!r}; wait for its end")
        return session

    def _info(self, session: Session) -> SessionInfo:
        return SessionInfo.of(session, busy=session.id in self._registry.busy)


@dataclass(frozen=True)
class Told:
    """What the engine does not know of its model, and files tell.

    Attributes:
        vocabulary: what token numbers stand for, as a hash
        model: its name, for people
        notes: written into a file as they are
    """

    vocabulary: str = ""
    model: str = ""
    notes: bytes = b""


class Imported(NamedTuple):
    """What a file has become.

    Attributes:
        restored: tokens that need no computing
        notes: of the server that wrote the file; they are anybody's words
    """

    session: SessionInfo
    restored: int
    notes: bytes


class Export:
    """A session on its way out: a past of its own, so that the session can go on meanwhile."""

    def __init__(self, memory: Memory, session: Session, writer: SessionWriter) -> None:
        self._memory, self._session = memory, session
        self.size = writer.size
        """Bytes of the file."""
        self._chunks = writer.chunks()
        self._reading = threading.Lock()
        self._open = True

    def read(self, least: int) -> bytes:
        """The next at least `least` bytes of the file, or its rest; nothing at its end, or when it was closed.

        Raises:
            DamagedBlock: the file ends here; the block is computed again when the session is next asked
        """
        read: list[bytes] = []
        with self._reading:
            try:
                while self._open and sum(map(len, read)) < least and (chunk := next(self._chunks, None)) is not None:
                    read.append(chunk)
            except DamagedBlock as damage:
                with self._memory._changed:
                    self._memory._damaged.append(damage)
                raise
        return b"".join(read)

    def close(self) -> None:
        """Let go of its blocks."""
        with self._reading, self._memory._changed:
            if self._open:
                self._open = False
                self._session.close()
