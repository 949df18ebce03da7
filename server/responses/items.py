"""The items of a conversation as /v1/responses tells them, and as messages for the chat template.

Owns the shape of a message item and its id. Knows no engine and no HTTP.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from server.chat import Message
from server.responses.schemas import InputMessage

Item = dict[str, Any]


def new_id(kind: str) -> str:
    """An id as OpenAI's look: `msg_…`, `resp_…`."""
    return f"{kind}_{uuid.uuid4().hex}"


def input_items(given: Sequence[InputMessage]) -> list[Item]:
    """What a request gave, as it is stored and listed."""
    return [_input_item(message) for message in given]


def _input_item(message: InputMessage) -> Item:
    if message.role == "assistant":
        return message_item(message.id or new_id("msg"), message.content)
    content = [{"type": "input_text", "text": message.content}]
    return {
        "id": message.id or new_id("msg"),
        "type": "message",
        "role": message.role,
        "status": "completed",
        "content": content,
    }


def message_item(id: str, text: str, logprobs: Sequence[Item] = (), status: str = "completed") -> Item:
    """A message of the model's."""
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": [text_part(text, logprobs)]}


def text_part(text: str, logprobs: Sequence[Item] = ()) -> Item:
    """A part of such a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def messages(items: Iterable[Item], instructions: str | None = None) -> list[Message]:
    """As chat templates take them, the instructions first; OpenAI's newer name for `system` is unknown to them."""
    first: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    return [*first, *(_message(item) for item in items)]


def _message(item: Item) -> Message:
    role = "system" if item["role"] == "developer" else item["role"]
    return {"role": role, "content": "".join(part["text"] for part in item["content"])}
