"""`Memory`: the sessions of an engine as their owners see and change them, from any thread.

Owns the lock, and who may touch a session when: one in which a request runs is left alone. Computes nothing, so a
session whose past has changed is computed when it is next asked.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from cache import Session, SessionRegistry
from engine.description import SessionInfo, TurnInfo
from engine.errors import EngineStopped, InvalidParameter, SessionBusy, SessionNotFound


class Memory:
    """See the module.

    Args:
        registry: the sessions
        session_ttl: seconds without use after which a session is deleted, if it does not say itself
    """

    def __init__(self, registry: SessionRegistry, session_ttl: float | None) -> None:
        self._registry = registry
        self._session_ttl = session_ttl
        self._accepting = True
        self._changed = threading.Condition()  # its lock guards everything that changes

    def create_session(self, tenant: str, *, pinned: bool = False, ttl: float | None = None) -> SessionInfo:
        """A new, empty session; `pinned` and `ttl` as SessionRegistry.create takes them."""
        with self._changed:
            self._check_accepting()
            ttl = self._session_ttl if ttl is None else ttl
            return self._info(self._registry.create(tenant, pinned=pinned, ttl=ttl))

    def change_session(
        self, session_id: str, tenant: str, *, pinned: bool | None = None, ttl: float | None = None
    ) -> SessionInfo:
        """Set what is not None; a ttl of 0 means none. Raises SessionNotFound."""
        with self._changed:
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
            return self._info(self._registry.fork(self._idle_session(session_id, tenant)))

    def delete_session(self, session_id: str, tenant: str) -> None:
        """Raises SessionNotFound, SessionBusy."""
        with self._changed:
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
