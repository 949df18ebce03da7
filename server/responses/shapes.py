"""The shapes of /v1/responses: the response's body, and the events of a stream with their numbers.

Owns the JSON. Knows no engine thread and no HTTP.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from engine import Progress
from server.choices import Ended
from server.errors import Problem
from server.responses.items import Item, new_id
from server.responses.schemas import ResponseRequest
from server.shapes import progress_body, usage_body
from server.tool_schemas import ToolChoice

Json = dict[str, Any]


@dataclass
class ResponseShape:
    """One response: what it is at each moment, and the events that tell it."""

    model: str
    request: ResponseRequest
    session_id: str | None
    id: str = field(default_factory=lambda: new_id("resp"))
    created: int = field(default_factory=lambda: int(time.time()))
    _number: int = 0

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

    def finished(self, output: list[Item], ended: Ended, **more: Any) -> Json:
        """The response with its answer."""
        status = status_of(ended)
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        told = {"completed_at": int(time.time()) if status == "completed" else None, "incomplete_details": reason}
        return self.body(status, **told, output=output, usage=response_usage(ended), **more)

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

    def ended(self, body: Json) -> bytes:
        """The response is complete."""
        return self.event(f"response.{body['status']}", response=body)

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
            "text": {"format": self._format(), "verbosity": "medium"},
            "tool_choice": _choice_body(asked.tool_choice),
            "tools": [tool.model_dump() for tool in asked.tools or ()],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "user": asked.user,
        }

    def _format(self) -> Json:
        given = self.request.text.format if self.request.text else None
        return given.model_dump(by_alias=True, exclude_none=True) if given else {"type": "text"}


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


def status_of(ended: Ended) -> str:
    return "incomplete" if ended.reason == "length" else "completed"


def _choice_body(choice: ToolChoice | None) -> Any:
    """A choice among tools as it was given."""
    if choice is None or choice.names is None:
        return choice.mode if choice else "auto"
    functions = [{"type": "function", "name": name} for name in choice.names]
    return functions[0] if choice.one else {"type": "allowed_tools", "mode": choice.mode, "tools": functions}
