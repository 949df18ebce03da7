"""/v1/responses with tools and forms: calls as items, and conversations that go on from what they returned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.server.test_responses import URL

CHAT = "/v1/chat/completions"


class Weather(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: str = Field(max_length=8)
    days: list[int] = Field(max_length=3)


class Sum(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int = Field(ge=0, le=99)
    b: int = Field(ge=0, le=99)


KINDS: dict[str, type[BaseModel]] = {"weather": Weather, "sum": Sum}
OURS: Any = [{"type": "function", "name": name, "parameters": kind.model_json_schema()} for name, kind in KINDS.items()]
TOOLS: Any = [{"type": "function", "function": {name: each[name] for name in ("name", "parameters")}} for each in OURS]
ONLY_SUM: Any = {"type": "function", "name": "sum"}
DRAWN = {"temperature": 1, "seed": 1}
WRONG = {"type": "nothing"}
ASK = "How is it in Lisbon?"


@pytest.fixture
def client(tiny: httpx.Client) -> Iterator[openai.OpenAI]:
    """The official client of the random model."""
    with openai.OpenAI(base_url=f"{tiny.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(autouse=True)
def _clean(tiny: httpx.Client) -> Iterator[None]:
    yield
    for session in tiny.get("/v1/sessions", params={"limit": 100}).json()["data"]:
        tiny.delete(f"/v1/sessions/{session['id']}")


def respond(tiny: httpx.Client, given: Any = ASK, **more: Any) -> dict[str, Any]:
    asked = {"input": given, "temperature": 0, "max_output_tokens": 60, "tools": OURS, **more}
    response = tiny.post(URL, json=asked)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


def called(tiny: httpx.Client) -> dict[str, Any]:
    """A response that calls a tool."""
    return respond(tiny, tool_choice=ONLY_SUM, max_output_tokens=500, **DRAWN)


def text_of(tiny: httpx.Client, told: dict[str, Any]) -> str:
    """What the session of a response holds."""
    return str(tiny.get(f"/v1/sessions/{told['session_id']}/text").json()["text"])


def by_chat(tiny: httpx.Client, *messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    asked = {"messages": messages, "temperature": 0, "max_tokens": 60, "tools": TOOLS, **more}
    message: dict[str, Any] = tiny.post(CHAT, json=asked).json()["choices"][0]["message"]
    return message


def test_calls_are_items(tiny: httpx.Client) -> None:
    told = called(tiny)
    [item] = told["output"]
    assert (item["type"], item["name"], item["status"], told["status"]) == ("function_call", "sum", *["completed"] * 2)
    KINDS["sum"].model_validate_json(item["arguments"])
    assert (told["tool_choice"], told["tools"][0]["name"]) == (ONLY_SUM, "weather")
    chosen = {"type": "function", "function": {"name": "sum"}}
    message = by_chat(tiny, {"role": "user", "content": ASK}, tool_choice=chosen, **DRAWN, max_tokens=500)
    assert item["arguments"] == message["tool_calls"][0]["function"]["arguments"]


def test_calls_are_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "input": ASK, "tools": OURS, "max_output_tokens": 500, "tool_choice": "required"}
    with client.responses.stream(**asked, extra_body={"seed": 3}) as stream:
        events = list(stream)
        final = stream.get_final_response()
    calls = [item for item in final.output if item.type == "function_call"]
    assert len(calls) == len(final.output) >= 1
    for at, call in enumerate(calls):
        mine = [event for event in events if getattr(event, "output_index", None) == at]
        kinds = [event.type for event in mine]
        deltas = [event.delta for event in mine if event.type == "response.function_call_arguments.delta"]
        assert kinds == [
            "response.output_item.added",
            *["response.function_call_arguments.delta"] * len(deltas),
            "response.function_call_arguments.done",
            "response.output_item.done",
        ]
        assert "".join(deltas) == call.arguments
        KINDS[call.name].model_validate_json(call.arguments)


def test_what_a_call_returned_goes_on(tiny: httpx.Client) -> None:
    """Behind the previous response: in its session, as it was written there."""
    first = called(tiny)
    before = text_of(tiny, first)
    [item] = first["output"]
    result = {"type": "function_call_output", "call_id": item["call_id"], "output": "it is 42"}
    second = respond(tiny, [result], previous_response_id=first["id"])
    assert second["usage"]["input_tokens_details"]["cached_tokens"] >= first["usage"]["total_tokens"] - 16
    held = text_of(tiny, second)
    assert held.startswith(before)
    assert "it is 42" in held[len(before) :]
    assert "weather" not in held[len(before) :], "the tools are told once"
    listed = tiny.get(f"{URL}/{second['id']}/input_items", params={"order": "asc"}).json()["data"]
    assert [each["type"] for each in listed] == ["message", "function_call", "function_call_output"]


def test_what_a_call_returned_may_be_told_from_the_beginning(tiny: httpx.Client) -> None:
    [item] = called(tiny)["output"]
    result = {"type": "function_call_output", "call_id": item["call_id"], "output": "42"}
    told = respond(tiny, [{"role": "user", "content": ASK}, item, result])
    call = {"id": item["call_id"], "type": "function", "function": {name: item[name] for name in ("name", "arguments")}}
    past: list[dict[str, Any]] = [{"role": "user", "content": ASK}, {"role": "assistant", "tool_calls": [call]}]
    expected = by_chat(tiny, *past, {"role": "tool", "tool_call_id": item["call_id"], "content": "42"})
    assert told["output"][0]["content"][0]["text"] == expected["content"]


def test_tools_hold_for_one_response(tiny: httpx.Client) -> None:
    first = respond(tiny)
    text = first["output"][0]["content"][0]["text"]
    second = respond(tiny, "And now?", previous_response_id=first["id"], tools=None)
    assert "weather" in text_of(tiny, first)
    held = text_of(tiny, second)
    assert "weather" not in held
    assert text in held


def test_a_format_is_held(tiny: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["a"]}
    held = {"type": "json_schema", "name": "x", "schema": {**schema, "additionalProperties": False}, "strict": True}
    told = respond(tiny, tools=None, text={"format": held})
    assert json.loads(told["output"][0]["content"][0]["text"]).keys() == {"a"}
    assert told["text"]["format"]["schema"] == held["schema"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": WRONG}}}, "text.format.schema"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "array"}}], "tool_choice": "required"},
         "tools.0.parameters"),
        ({"tools": [{"type": "function", "name": "f"}] * 2}, "tools"),
        ({"tool_choice": {"type": "function", "name": "nobody"}, "tools": OURS}, "tool_choice"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_is_named(tiny: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = tiny.post(URL, json={"input": ASK, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
