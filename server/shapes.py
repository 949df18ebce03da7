"""The shapes of OpenAI's answers: chat completions and completions, whole and in chunks.

Owns the JSON of choices, usage and timings. Knows no engine thread and no HTTP.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine import Progress
from server.choices import Delta, Ended, Piece, ScoredToken
from server.pieces import TextStream
from server.tool_formats import CallDelta, merged

Json = dict[str, Any]


class Shape(Protocol):
    """One kind of answer."""

    def opening(self, index: int) -> Json | None: ...
    def delta(self, delta: Delta) -> Json: ...
    def closing(self, ended: Ended) -> Json: ...
    def whole(self, deltas: Sequence[Delta], ended: Ended) -> Json: ...
    def envelope(self, chunk: bool) -> Json: ...


@dataclass
class _Envelope:
    """What every chunk of an answer repeats."""

    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def _body(self, prefix: str, kind: str) -> Json:
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}


@dataclass
class ChatShape(_Envelope):
    """Chat completions: a role first, then contents."""

    def envelope(self, chunk: bool) -> Json:
        return self._body("chatcmpl", "chat.completion.chunk" if chunk else "chat.completion")

    def opening(self, index: int) -> Json:
        return self._chunk(index, {"role": "assistant", "content": ""})

    def delta(self, delta: Delta) -> Json:
        content = {"content": delta.text} if delta.text or not delta.calls else {}
        calls = {"tool_calls": [_call_piece(call) for call in delta.calls]} if delta.calls else {}
        return self._chunk(delta.index, {**content, **calls}, _chat_logprobs(delta.scored))

    def closing(self, ended: Ended) -> Json:
        return self._chunk(ended.index, {}, None, ended.reason)

    def whole(self, deltas: Sequence[Delta], ended: Ended) -> Json:
        text, calls = "".join(delta.text for delta in deltas), whole_calls(deltas)
        message: Json = {"role": "assistant", "content": text or None if calls else text, "refusal": None}
        if calls:
            message["tool_calls"] = [_call_body(call) for call in calls]
        scored = [token for delta in deltas for token in delta.scored]
        logprobs = _chat_logprobs(scored)
        return {"index": ended.index, "message": message, "logprobs": logprobs, "finish_reason": ended.reason}

    def _chunk(self, index: int, delta: Json, logprobs: Json | None = None, reason: str | None = None) -> Json:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


@dataclass
class CompletionShape(_Envelope):
    """Completions: plain text; `echoes` are the prompts to repeat, by the number of the choice."""

    echoes: Sequence[str] = ()
    _written: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    _texts: defaultdict[int, TextStream] = field(default_factory=lambda: defaultdict(TextStream))

    def envelope(self, chunk: bool) -> Json:
        return self._body("cmpl", "text_completion")

    def opening(self, index: int) -> Json | None:
        return self._choice(index, self.echoes[index]) if self.echoes else None

    def delta(self, delta: Delta) -> Json:
        return self._choice(delta.index, delta.text, self._logprobs(delta.index, delta.scored))

    def closing(self, ended: Ended) -> Json:
        return self._choice(ended.index, "", None, ended.reason)

    def whole(self, deltas: Sequence[Delta], ended: Ended) -> Json:
        text = "".join(delta.text for delta in deltas)
        echo = self.echoes[ended.index] if self.echoes else ""
        logprobs = self._logprobs(ended.index, [token for delta in deltas for token in delta.scored])
        return self._choice(ended.index, echo + text, logprobs, ended.reason)

    def _choice(self, index: int, text: str, logprobs: Json | None = None, reason: str | None = None) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, scored: Sequence[ScoredToken]) -> Json | None:
        if not scored:
            return None
        return {
            "tokens": [token.chosen.text for token in scored],
            "token_logprobs": [token.chosen.logprob for token in scored],
            "top_logprobs": [_top(token) for token in scored],
            "text_offset": [self._offset(index, token.chosen.data) for token in scored],
        }

    def _offset(self, index: int, data: bytes) -> int:
        """Where a token begins; the bytes of one character may lie in several."""
        offset = self._written[index]
        self._written[index] += len(self._texts[index].push(data))
        return offset


def usage_body(ends: Sequence[Ended]) -> Json:
    """`usage` over all answers: prompts count once, however many answers they have."""
    prompts = {ended.index: ended.finished.usage for ended in ends if ended.finished.index == 0}
    prompt = sum(usage.prompt_tokens for usage in prompts.values())
    cached = sum(usage.cached_tokens for usage in prompts.values())
    generated = sum(_generated(ended) for ended in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def timings_body(ends: Sequence[Ended]) -> Json:
    """Milliseconds of the slowest answer."""
    timings = [ended.finished.timing for ended in ends]
    return {
        "queue_ms": round(1000 * max(timing.queue for timing in timings), 3),
        "prefill_ms": round(1000 * max(timing.prefill for timing in timings), 3),
        "decode_ms": round(1000 * max(timing.decode for timing in timings), 3),
    }


def progress_body(progress: Progress) -> Json:
    """How much of the session has been read."""
    return {
        "total": progress.total,
        "cached": progress.cached,
        "processed": progress.processed,
        "time_ms": round(progress.time_ms, 3),
    }


def _generated(ended: Ended) -> int:
    """Tokens up to a stop string; the engine may have been one step ahead of it."""
    counted = ended.finished.usage.completion_tokens
    return min(counted, len(ended.tokens)) if ended.finished.reason == "cancelled" else counted


def whole_calls(deltas: Sequence[Delta]) -> tuple[CallDelta, ...]:
    """The calls of an answer, complete."""
    return merged([call for delta in deltas for call in delta.calls])


def _call_body(call: CallDelta) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _call_piece(call: CallDelta) -> Json:
    """Id, type and name come once, with the call's first piece."""
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index, **_call_body(call)}


def _chat_logprobs(scored: Sequence[ScoredToken]) -> Json | None:
    if not scored:
        return None
    content = [{**_piece(token.chosen), "top_logprobs": [_piece(piece) for piece in token.top]} for token in scored]
    return {"content": content, "refusal": None}


def _top(token: ScoredToken) -> Json | None:
    """The most likely tokens by their texts, and the one that stands there; the first of a prompt has none."""
    if token.chosen.logprob is None:
        return None
    told: Json = {}
    for piece in (*token.top, token.chosen):
        told.setdefault(piece.text, piece.logprob)  # of two with the same text (halves of characters), the likelier
    return told


def _piece(piece: Piece) -> Json:
    return {"token": piece.text, "logprob": piece.logprob, "bytes": list(piece.data)}
