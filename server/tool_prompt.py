"""Calls and what they returned as messages: for templates that know them, and in words for those that do not.

Owns the words. Knows no template and no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.json_schema import SchemaError, check_bounds
from server.tool_formats import Call, ToolFormat

Message = Mapping[str, Any]

INSTRUCTIONS = """You can call tools. Each line tells one, with a JSON schema of its arguments:
<tools>
{tools}
</tools>
To call tools, answer with nothing but this, once for each call:
{example}
What they return is told to you between <tool_response> and </tool_response>. If no tool is needed, answer in words."""


def instructions(tools: Sequence[Mapping[str, Any]], format: ToolFormat) -> str:
    """What a model is told about tools if its template cannot tell it."""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return INSTRUCTIONS.format(tools=lines, example=format.example)


def for_template(message: Message, format: ToolFormat) -> dict[str, Any]:
    """A message as templates that know tools take it: with the arguments' meaning instead of their text."""
    told = dict(message)
    if "tool_call_id" in told:
        told["tool_call_id"] = format.past_id(told["tool_call_id"])
    if "tool_calls" in told:
        told["tool_calls"] = [_for_template(call) for call in _calls(message, format)]
    return told


def in_words(messages: Sequence[Message], format: ToolFormat) -> list[dict[str, Any]]:
    """Messages of users, assistants and the system alone; what tools returned is told as the user's."""
    told: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if told and told[-1].get("returned"):
                told[-1]["content"] += "\n" + text
            else:
                told.append({"role": "user", "content": text, "returned": True})
        else:
            told.append({"role": message["role"], "content": _in_words(message, format)})
    return [{"role": message["role"], "content": message["content"]} for message in told]


def to_system(messages: Sequence[Message], text: str) -> list[Message]:
    """`text` told by the system, at the beginning."""
    first, rest = messages[0], messages[1:]
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    return [{"role": "system", "content": text}, *messages]


def to_user(messages: Sequence[Message], text: str) -> list[Message]:
    """`text` told before what the user says first, for templates without a system."""
    place = next((number for number, message in enumerate(messages) if message["role"] == "user"), None)
    if place is None:
        return [{"role": "user", "content": text}, *messages]
    said = {**messages[place], "content": f"{text}\n\n{messages[place]['content']}"}
    return [*messages[:place], said, *messages[place + 1 :]]


def _calls(message: Message, format: ToolFormat) -> list[Call]:
    return [
        Call(format.past_id(call["id"]), call["function"]["name"], _meaning(call["function"]["arguments"]))
        for call in message["tool_calls"]
    ]


def _for_template(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _in_words(message: Message, format: ToolFormat) -> str:
    calls = format.written(_calls(message, format)) if "tool_calls" in message else ""
    return "\n".join(part for part in (message["content"], calls) if part)


def _meaning(arguments: str) -> Any:
    """What the JSON means; an answer that was cut has none, and is told as it is."""
    try:
        meaning = json.loads(arguments)
        check_bounds(meaning)
    except (ValueError, RecursionError, SchemaError):
        return arguments
    return meaning if isinstance(meaning, dict) else arguments
