"""The items of a conversation as /v1/responses tells them, and as messages for the chat template.

Owns the shapes of items and their ids. Knows no engine and no HTTP.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from server.responses.schemas import InputCall, InputMessage, InputResult
from server.tool_prompt import Message

Item = dict[str, Any]
PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fc"}


def new_id(prefix: str) -> str:
    """An id as OpenAI's look: `msg_…`, `resp_…`."""
    return f"{prefix}_{uuid.uuid4().hex}"


def input_items(given: Sequence[InputMessage | InputCall | InputResult]) -> list[Item]:
    """What a request gave, as it is stored and listed."""
    return [
        {"id": each.id or new_id(PREFIXES[each.type]), **_input_item(each), "status": each.status or "completed"}
        for each in given
    ]


def _input_item(given: InputMessage | InputCall | InputResult) -> Item:
    if isinstance(given, InputCall):
        told = {"call_id": given.call_id, "name": given.name, "arguments": given.arguments}
    elif isinstance(given, InputResult):
        told = {"call_id": given.call_id, "output": given.output}
    else:
        part = text_part(given.content) if given.role == "assistant" else {"type": "input_text", "text": given.content}
        return {"type": "message", "role": given.role, "content": [part]}
    return {"type": given.type, **told}


def message_item(id: str, text: str, logprobs: Sequence[Item] = (), status: str = "completed") -> Item:
    """A message of the model's."""
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": [text_part(text, logprobs)]}


def call_item(id: str, call_id: str, name: str, arguments: str, status: str = "completed") -> Item:
    """A call of a tool by the model."""
    told = {"call_id": call_id, "name": name, "arguments": arguments}
    return {"id": id, "type": "function_call", "status": status, **told}


def text_part(text: str, logprobs: Sequence[Item] = ()) -> Item:
    """A part of a message of the model's."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def messages(items: Iterable[Item], instructions: str | None = None) -> list[Message]:
    """As chat templates take them, the instructions first; the calls of one answer stand in one message."""
    told: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for item in items:
        if item["type"] != "function_call":
            told.append(_message(item))
            continue
        if not told or told[-1]["role"] != "assistant":
            told.append({"role": "assistant", "content": ""})
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        told[-1].setdefault("tool_calls", []).append(call)
    return list(told)


def _message(item: Item) -> dict[str, Any]:
    if item["type"] == "function_call_output":
        return {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"], "name": ""}
    role = "system" if item["role"] == "developer" else item["role"]  # the newer name is unknown to templates
    return {"role": role, "content": "".join(part["text"] for part in item["content"])}
