"""`Cairn.sessions`: texts that grow on the server, are read once and kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from cairn_client import operations
from cairn_client.events import Progress
from cairn_client.files import Moved, Source, Target, saved, upload
from cairn_client.operations import SessionLike
from cairn_client.sync.sender import Sender
from cairn_client.sync.streams import Stream
from cairn_client.types import Appended, Found, Session, SessionPage, SessionText, Turn


class Sessions:
    """The sessions of one key. Where a session is asked for, its id does as well."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def create(
        self, *, pinned: bool = False, ttl_seconds: float | None = None, idempotency_key: str | None = None
    ) -> Session:
        """A new, empty session; the same key gives the same session again."""
        return self._sender.call(operations.create(pinned, ttl_seconds, idempotency_key))

    def list(self, *, order: str | None = None, page_size: int = 100) -> Iterator[Session]:
        """All sessions, asked for a page at a time; `order` is asc or desc by creation."""
        after: str | None = None
        while True:
            page = self.page(limit=page_size, after=after, order=order)
            yield from page.data
            if not page.has_more or page.last_id is None:
                return
            after = page.last_id

    def page(self, *, limit: int = 20, after: str | None = None, order: str | None = None) -> SessionPage:
        """Up to `limit` sessions, those after the id `after`."""
        return self._sender.call(operations.page(limit, after, order))

    def get(self, session: SessionLike) -> Session:
        return self._sender.call(operations.get(session))

    def change(
        self,
        session: SessionLike,
        *,
        pinned: bool | None = None,
        ttl_seconds: float | None = None,
        if_match: str | None = None,
    ) -> Session:
        """Set whether it is pinned, or how long it is kept without use (0 takes the limit away)."""
        return self._sender.call(operations.change(session, pinned, ttl_seconds, if_match))

    def text(
        self, session: SessionLike, *, start_token: int | None = None, end_token: int | None = None
    ) -> SessionText:
        """What it holds, or some tokens of it."""
        return self._sender.call(operations.text(session, start_token, end_token))

    def append(
        self,
        session: SessionLike,
        text: str,
        *,
        progress: Callable[[Progress], object] | None = None,
        if_match: str | None = None,
    ) -> Appended:
        """Read `text` into it without answering; `progress` hears how far that is."""
        return _read(self.append_stream(session, text, if_match=if_match), progress)

    def append_stream(
        self, session: SessionLike, text: str, *, if_match: str | None = None
    ) -> Stream[Progress, Appended]:
        """The same as a stream of progress."""
        return Stream(self._sender, operations.append(session, text, if_match))

    def add_document(
        self,
        session: SessionLike,
        file: Source,
        *,
        name: str | None = None,
        media_type: str | None = None,
        progress: Callable[[Progress], object] | None = None,
        if_match: str | None = None,
    ) -> Appended:
        """Read a file into it: plain text, Markdown, HTML or PDF; a path, bytes, or an open binary file."""
        given = self.document_stream(session, file, name=name, media_type=media_type, if_match=if_match)
        return _read(given, progress)

    def document_stream(
        self,
        session: SessionLike,
        file: Source,
        *,
        name: str | None = None,
        media_type: str | None = None,
        if_match: str | None = None,
    ) -> Stream[Progress, Appended]:
        """The same as a stream of progress."""
        return Stream(self._sender, operations.add_document(session, upload(file, name, media_type), if_match))

    def fork(self, session: SessionLike, *, idempotency_key: str | None = None) -> Session:
        """A new session with the same past, which is shared and not copied."""
        return self._sender.call(operations.fork(session, idempotency_key))

    def delete(self, session: SessionLike, *, if_match: str | None = None) -> None:
        self._sender.call(operations.delete(session, if_match))

    def turns(self, session: SessionLike) -> tuple[Turn, ...]:
        """The requests that it was made by, in their order."""
        return self._sender.call(operations.turns(session))

    def rewind(
        self,
        session: SessionLike,
        *,
        turn: int | None = None,
        tokens: int | None = None,
        if_match: str | None = None,
    ) -> Session:
        """Forget everything from the start of `turn` on, or all but the first `tokens`. Forks stay as they are."""
        return self._sender.call(operations.rewind(session, turn, tokens, if_match))

    def search(
        self, session: SessionLike, query: str, *, passages: int = 5, blocks_per_head: int | None = None
    ) -> Found:
        """The passages that reading `query` there would read most; the session does not change."""
        return self._sender.call(operations.search(session, query, passages, blocks_per_head))

    def export(self, session: SessionLike, target: Target, *, kv: bool = True, progress: Moved | None = None) -> int:
        """Write it to a path or an open binary file, without its keys and values if not `kv`; the bytes written."""
        with contextlib.closing(self._sender.open(operations.export(session, kv))) as response, saved(target) as file:
            length, written = response.headers.get("content-length"), 0
            for piece in self._sender.pieces(response):
                written += file.write(piece)
                if progress:
                    progress(written, int(length) if length else None)
        return written

    def import_from(
        self,
        source: Source,
        *,
        kv: bool = True,
        progress: Moved | None = None,
        idempotency_key: str | None = None,
    ) -> Session:
        """A session from what `export` wrote; `restored_tokens` of it need no computing, none of it if not `kv`."""
        return self._sender.call(operations.import_from(upload(source, None, moved=progress), kv, idempotency_key))


def _read(stream: Stream[Progress, Appended], progress: Callable[[Progress], object] | None) -> Appended:
    with stream:
        for event in stream:
            if progress:
                progress(event)
        return stream.answer
