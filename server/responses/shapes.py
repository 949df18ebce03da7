"""The shapes of /v1/responses: the response's body, and the events of a stream with their numbers.

Owns the JSON. Knows no engine thread and no HTTP.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import Progress
from server.choices import Ended, Piece, ScoredToken
from server.errors import Problem
from server.responses.items import message_item, new_id, text_part
from server.responses.schemas import ResponseRequest
from server.shapes import progress_body, usage_body

Json = dict[str, Any]
AT = {"output_index": 0, "content_index": 0}


@dataclass
class ResponseShape:
    """One response: what it is at each moment, and the events that tell it."""

    model: str
    request: ResponseRequest
    session_id: str | None
    id: str = field(default_factory=lambda: new_id("resp"))
    item_id: str = field(default_factory=lambda: new_id("msg"))
    created: int = field(default_factory=lambda: int(time.time()))
    _number: int = 0
    _opened: bool = False

    def body(self, status: str = "in_progress", **more: Any) -> Json:
        """The response; `more` is what is known by now."""
        return {
            **self._identity(status),
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **self._request(),
            "session_id": self.session_id,
            **more,
        }

    def finished(self, text: str, scored: Sequence[ScoredToken], ended: Ended, **more: Any) -> Json:
        """The response with its answer."""
        status = "incomplete" if ended.reason == "length" else "completed"
        item = message_item(self.item_id, text, logprobs_body(scored), status)
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        told = {"completed_at": int(time.time()) if status == "completed" else None, "incomplete_details": reason}
        return self.body(status, **told, output=[item], usage=response_usage(ended), **more)

    def failed(self, problem: Problem) -> Json:
        """The response that came to nothing."""
        code = "rate_limit_exceeded" if problem.status == 429 else "server_error"
        return self.body("failed", error={"code": code, "message": problem.message})

    # -- events ----------------------------------------------------------------------------------------------

    def event(self, kind: str, **fields: Any) -> bytes:
        """One event with the next number; plain ASCII, since some clients take U+2028 for the end of a line."""
        body = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(body, separators=(',', ':'))}\n\n".encode()

    def begun(self) -> Iterator[bytes]:
        """The response has been accepted."""
        yield self.event("response.created", response=self.body())
        yield self.event("response.in_progress", response=self.body())

    def progress(self, progress: Progress) -> bytes:
        """Ours: how much has been read."""
        return self.event("response.prompt_progress", prompt_progress=progress_body(progress))

    def opened(self) -> Iterator[bytes]:
        """The message begins, once."""
        if self._opened:
            return
        self._opened = True
        item = {**message_item(self.item_id, "", status="in_progress"), "content": []}
        yield self.event("response.output_item.added", output_index=0, item=item)
        yield self.event("response.content_part.added", item_id=self.item_id, **AT, part=text_part(""))

    def delta(self, text: str, scored: Sequence[ScoredToken]) -> Iterator[bytes]:
        """The message grows."""
        yield from self.opened()
        logprobs = logprobs_body(scored)
        yield self.event("response.output_text.delta", item_id=self.item_id, **AT, delta=text, logprobs=logprobs)

    def ended(self, body: Json) -> Iterator[bytes]:
        """The message and the response are complete."""
        yield from self.opened()
        [item] = body["output"]
        [part] = item["content"]
        told = {"text": part["text"], "logprobs": part["logprobs"]}
        yield self.event("response.output_text.done", item_id=self.item_id, **AT, **told)
        yield self.event("response.content_part.done", item_id=self.item_id, **AT, part=part)
        yield self.event("response.output_item.done", output_index=0, item=item)
        yield self.event(f"response.{body['status']}", response=body)

    # -- parts of the body -----------------------------------------------------------------------------------

    def _identity(self, status: str) -> Json:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": None,
            "status": status,
            "model": self.model,
        }

    def _request(self) -> Json:
        """What was asked, with what was left out filled in."""
        asked = self.request
        return {
            "background": False,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": asked.max_tool_calls,
            "metadata": asked.metadata or {},
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": asked.keeps,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": asked.tool_choice or "auto",
            "tools": [],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "user": asked.user,
        }


def response_usage(ended: Ended) -> Json:
    """Usage in the words of responses."""
    usage = usage_body([ended])
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }


def logprobs_body(scored: Sequence[ScoredToken]) -> list[Json]:
    """The answer's tokens, each with the most likely ones at its place."""
    return [{**_piece(token.chosen), "top_logprobs": [_piece(piece) for piece in token.top]} for token in scored]


def _piece(piece: Piece) -> Json:
    return {"token": piece.text, "logprob": piece.logprob, "bytes": list(piece.data)}
