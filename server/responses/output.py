"""The output of a response in the making: its items, and the events that tell how they grow.

Owns which item is open: a message while text comes, then each call of a tool. Knows no engine and no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.choices import Delta, Piece, ScoredToken
from server.responses.items import Item, call_item, message_item, new_id, text_part
from server.tool_formats import CallDelta

Event = Callable[..., bytes]


@dataclass
class GrowingMessage:
    """A message; `at` is its place in the output."""

    event: Event
    at: int
    id: str = field(default_factory=lambda: new_id("msg"))
    text: str = ""
    logprobs: list[Item] = field(default_factory=list)

    def opened(self) -> Iterator[bytes]:
        item = {**self.item("in_progress"), "content": []}
        yield self.event("response.output_item.added", output_index=self.at, item=item)
        yield self._event("response.content_part.added", part=text_part(""))

    def grow(self, text: str, scored: Sequence[ScoredToken]) -> Iterator[bytes]:
        logprobs = logprobs_body(scored)
        self.text += text
        self.logprobs += logprobs
        yield self._event("response.output_text.delta", delta=text, logprobs=logprobs)

    def closed(self) -> Iterator[bytes]:
        yield self._event("response.output_text.done", text=self.text, logprobs=self.logprobs)
        yield self._event("response.content_part.done", part=text_part(self.text, self.logprobs))

    def item(self, status: str) -> Item:
        return message_item(self.id, self.text, self.logprobs, status)

    def _event(self, kind: str, **fields: Any) -> bytes:
        return self.event(kind, item_id=self.id, output_index=self.at, content_index=0, **fields)


@dataclass
class GrowingCall:
    """A call of a tool; `index` is its number among the calls."""

    event: Event
    at: int
    index: int
    call_id: str
    name: str
    id: str = field(default_factory=lambda: new_id("fc"))
    arguments: str = ""

    def opened(self) -> Iterator[bytes]:
        yield self.event("response.output_item.added", output_index=self.at, item=self.item("in_progress"))

    def grow(self, arguments: str) -> Iterator[bytes]:
        self.arguments += arguments
        if arguments:
            yield self._event("response.function_call_arguments.delta", delta=arguments)

    def closed(self) -> Iterator[bytes]:
        yield self._event("response.function_call_arguments.done", name=self.name, arguments=self.arguments)

    def item(self, status: str) -> Item:
        return call_item(self.id, self.call_id, self.name, self.arguments, status)

    def _event(self, kind: str, **fields: Any) -> bytes:
        return self.event(kind, item_id=self.id, output_index=self.at, **fields)


@dataclass
class Output:
    """All items, of which the last may be open; `event` numbers and frames what happens."""

    event: Event
    items: list[Item] = field(default_factory=list)
    _open: GrowingMessage | GrowingCall | None = None

    def add(self, delta: Delta) -> Iterator[bytes]:
        """What the answer gained."""
        if delta.text or not (delta.calls or isinstance(self._open, GrowingCall)):
            if not isinstance(self._open, GrowingMessage):
                yield from self._begin(GrowingMessage(self.event, self._next))
            assert isinstance(self._open, GrowingMessage)
            yield from self._open.grow(delta.text, delta.scored)
        for call in delta.calls:
            yield from self._call(call)

    def finish(self, status: str) -> Iterator[bytes]:
        """No more comes; an answer without anything is a message without text."""
        if self._open is None:
            yield from self._begin(GrowingMessage(self.event, 0))
        yield from self._close(status)

    @property
    def _next(self) -> int:
        """The place of the next item."""
        return len(self.items) + (self._open is not None)

    def _call(self, delta: CallDelta) -> Iterator[bytes]:
        if not isinstance(self._open, GrowingCall) or self._open.index != delta.index:
            at, name = self._next, delta.name or ""
            yield from self._begin(GrowingCall(self.event, at, delta.index, delta.id or new_id("call"), name))
        assert isinstance(self._open, GrowingCall)
        yield from self._open.grow(delta.arguments)

    def _begin(self, item: GrowingMessage | GrowingCall) -> Iterator[bytes]:
        yield from self._close("completed")
        self._open = item
        yield from item.opened()

    def _close(self, status: str) -> Iterator[bytes]:
        if self._open is None:
            return
        yield from self._open.closed()
        self.items.append(self._open.item(status))
        yield self.event("response.output_item.done", output_index=self._open.at, item=self.items[-1])
        self._open = None


def logprobs_body(scored: Sequence[ScoredToken]) -> list[Item]:
    """The answer's tokens, each with the most likely ones at its place."""
    return [{**_piece(token.chosen), "top_logprobs": [_piece(piece) for piece in token.top]} for token in scored]


def _piece(piece: Piece) -> Item:
    return {"token": piece.text, "logprob": piece.logprob, "bytes": list(piece.data)}
