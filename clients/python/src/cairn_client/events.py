"""What a stream tells, piece by piece, and the whole that the pieces make.

Owns the way from chunks to events and to an answer. Reads from nowhere: see `cairn_client.sse`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from cairn_client import reading
from cairn_client.errors import BadReply
from cairn_client.types import Answer, Appended, Choice, Json, Retrieval, Timings, ToolCall, Usage


@dataclass(frozen=True)
class Progress:
    """How far the prompt is read: `processed` of `total` tokens of the session, of which `cached` were there before."""

    total: int
    cached: int
    processed: int
    time_ms: float


@dataclass(frozen=True)
class TextPiece:
    """More text of the choice `index`."""

    text: str
    index: int = 0


@dataclass(frozen=True)
class ToolCallPiece:
    """More of a call that the model asks for: `id` and `name` come first, `arguments` in pieces."""

    number: int
    id: str | None
    name: str | None
    arguments: str
    index: int = 0


@dataclass(frozen=True)
class Ended:
    """The choice `index` is complete."""

    finish_reason: str
    index: int = 0
    timings: Timings | None = None


@dataclass(frozen=True)
class Read:
    """What the answer has read, if the request asked for it."""

    retrieval: Retrieval


@dataclass(frozen=True)
class Used:
    """The tokens of the whole request."""

    usage: Usage


Event = Progress | TextPiece | ToolCallPiece | Ended | Read | Used


@dataclass
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass
class _Growing:
    text: str = ""
    finish_reason: str | None = None
    calls: dict[int, _Call] = field(default_factory=dict)

    def whole(self, index: int) -> Choice:
        calls = tuple(ToolCall(call.id, call.name, call.arguments) for _, call in sorted(self.calls.items()))
        return Choice(index, self.text, self.finish_reason, calls)


class Collector:
    """The chunks of a chat or a completion become events, and at the end an answer."""

    def __init__(self) -> None:
        self._choices: dict[int, _Growing] = {}
        self._last: Json = {}
        self._usage: Usage | None = None
        self._timings: Timings | None = None
        self._retrieval: Retrieval | None = None

    def events(self, chunk: Json) -> Iterator[Event]:
        """What `chunk` tells."""
        self._last = chunk
        if told := chunk.get("prompt_progress"):
            yield progress(told)
        for choice in chunk.get("choices") or ():
            yield from self._choice(chunk, choice)
        if retrieval := reading.retrieval(chunk):
            self._retrieval = retrieval
            yield Read(retrieval)
        if usage := reading.usage(chunk):
            self._usage = usage
            yield Used(usage)

    def answer(self, session_id: str | None = None) -> Answer:
        """All that was told until now."""
        choices = tuple(growing.whole(index) for index, growing in sorted(self._choices.items()))
        name, model = str(self._last.get("id", "")), str(self._last.get("model", ""))
        return Answer(name, model, choices, self._usage, self._timings, self._retrieval, session_id)

    def _choice(self, chunk: Json, choice: Json) -> Iterator[Event]:
        index = int(choice.get("index") or 0)
        growing = self._choices.setdefault(index, _Growing())
        delta = choice.get("delta") or {}
        if text := delta.get("content") or choice.get("text"):
            growing.text += text
            yield TextPiece(text, index)
        for call in delta.get("tool_calls") or ():
            yield _called(growing, call, index)
        if reason := choice.get("finish_reason"):
            growing.finish_reason = reason
            self._timings = reading.timings(chunk) or self._timings
            yield Ended(reason, index, reading.timings(chunk))


class AppendCollector:
    """The events of reading into a session, whose last is the whole answer."""

    def __init__(self) -> None:
        self._whole: Json | None = None

    def events(self, chunk: Json) -> Iterator[Progress]:
        """Progress, until the answer comes."""
        if told := chunk.get("prompt_progress"):
            yield progress(told)
        else:
            self._whole = chunk

    def answer(self, session_id: str | None = None) -> Appended:
        """What was read; BadReply if the stream told no end."""
        if self._whole is None:
            raise BadReply("the stream ended without telling what was read")
        return reading.appended(self._whole)


def progress(told: Json) -> Progress:
    total, cached, processed = (int(told.get(name) or 0) for name in ("total", "cached", "processed"))
    return Progress(total, cached, processed, float(told.get("time_ms") or 0))


def _called(growing: _Growing, call: Json, index: int) -> ToolCallPiece:
    number, function = int(call.get("index") or 0), call.get("function") or {}
    known = growing.calls.setdefault(number, _Call())
    known.id, known.name = call.get("id") or known.id, function.get("name") or known.name
    known.arguments += function.get("arguments") or ""
    return ToolCallPiece(number, call.get("id"), function.get("name"), function.get("arguments") or "", index)
