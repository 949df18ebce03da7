"""Tools through the official client: calls of a model that knows nothing, and conversations that go on from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

CHAT = "/v1/chat/completions"
USER: Any = {"role": "user", "content": "How is it in Lisbon?"}
Events = Callable[[httpx.Response], list[dict[str, Any]]]


class Weather(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: str = Field(max_length=8)
    unit: Literal["C", "F"]
    days: list[int] = Field(max_length=3)


class Sum(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int = Field(ge=0, le=99)
    b: int = Field(ge=0, le=99)


def tool(kind: type[BaseModel], strict: bool | None = None) -> Any:
    function = {"name": kind.__name__.lower(), "description": "A tool.", "parameters": kind.model_json_schema()}
    return {"type": "function", "function": function if strict is None else {**function, "strict": strict}}


KINDS: dict[str, type[BaseModel]] = {"weather": Weather, "sum": Sum}
TOOLS: Any = [tool(Weather), tool(Sum)]
ONLY_SUM: Any = {"type": "function", "function": {"name": "sum"}}


@pytest.fixture
def client(tiny: httpx.Client) -> Iterator[openai.OpenAI]:
    """The official client of the random model."""
    with openai.OpenAI(base_url=f"{tiny.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **more: Any) -> Any:
    asked = {"model": "tiny", "messages": [USER], "tools": TOOLS, "max_tokens": 250, "seed": 1, **more}
    return client.chat.completions.create(**asked)


def checked(calls: Any) -> list[BaseModel]:
    """The arguments of calls, which keep to their schemas."""
    assert len({call.id for call in calls}) == len(calls)
    return [KINDS[call.function.name].model_validate_json(call.function.arguments) for call in calls]


def test_a_required_call_is_valid(client: openai.OpenAI) -> None:
    names = set[str]()
    for choice in ask(client, tool_choice="required", n=4).choices:
        if choice.finish_reason == "length":
            continue
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert checked(choice.message.tool_calls)
        names.update(call.function.name for call in choice.message.tool_calls)
    assert names == set(KINDS)


def test_a_named_function_is_called_once(client: openai.OpenAI) -> None:
    for seed in range(2):
        [choice] = ask(client, tool_choice=ONLY_SUM, seed=seed).choices
        [call] = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls"
        assert call.function.name == "sum"
        checked([call])


def test_only_allowed_tools_are_called(client: openai.OpenAI) -> None:
    allowed: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [ONLY_SUM]}}
    [choice] = ask(client, tool_choice=allowed).choices
    assert {call.function.name for call in choice.message.tool_calls} == {"sum"}


def test_without_parallel_calls_there_is_one(client: openai.OpenAI) -> None:
    asked: Any = {"tool_choice": "required", "n": 3, "tools": [tool(Sum)]}
    several = ask(client, **asked)
    assert max(len(choice.message.tool_calls) for choice in several.choices) > 1
    single = ask(client, **asked, parallel_tool_calls=False)
    assert [len(choice.message.tool_calls) for choice in single.choices] == [1] * 3


def test_a_stream_tells_the_same_calls_piece_by_piece(client: openai.OpenAI) -> None:
    whole = ask(client, tool_choice="required").choices[0].message.tool_calls
    with client.chat.completions.stream(
        model="tiny", messages=[USER], tools=TOOLS, tool_choice="required", seed=1, max_tokens=250
    ) as stream:
        pieces = [
            call for event in stream if event.type == "chunk" for choice in event.chunk.choices
            for call in choice.delta.tool_calls or []
        ]  # fmt: skip
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    told = final.message.tool_calls
    assert told is not None
    assert [call.function.model_dump()["arguments"] for call in told] == [call.function.arguments for call in whole]
    for index in range(len(whole)):
        first, *rest = [piece for piece in pieces if piece.index == index]
        assert first.function is not None
        assert (first.type, first.function.name, bool(first.id)) == ("function", whole[index].function.name, True)
        assert rest
        names = {(piece.type, piece.function.name if piece.function else "", piece.id) for piece in rest}
        assert names == {(None, None, None)}


def test_a_cut_call_says_so(client: openai.OpenAI) -> None:
    [choice] = ask(client, tool_choice=ONLY_SUM, max_tokens=25).choices
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.name == "sum"


def test_log_probabilities_tell_every_token_of_a_call(tiny: httpx.Client, events: Events) -> None:
    asked = {
        "messages": [USER],
        "tools": TOOLS,
        "tool_choice": ONLY_SUM,
        "logprobs": True,
        "max_tokens": 200,
        "seed": 1,
    }
    whole = tiny.post(CHAT, json=asked).json()
    said = "".join(token["token"] for token in whole["choices"][0]["logprobs"]["content"])
    assert said.startswith('<tool_call>\n{"name": "sum", "arguments": {')
    assert said.endswith("</tool_call><|end|>")
    streamed = ""
    for chunk in events(tiny.post(CHAT, json={**asked, "stream": True})):
        for choice in chunk["choices"]:
            streamed += "".join(token["token"] for token in (choice["logprobs"] or {}).get("content", ()))
    assert streamed == said


TEXT_OF_A_CALL = 'So: <tool_call>\n{"name": "sum", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def say(text: str) -> dict[str, Any]:
    """Parameters that let a model, tools or not, say nothing else; the form is not told to the parser."""
    return {"structured_outputs": {"choice": [text]}}


def test_the_model_may_choose_to_say_anything(client: openai.OpenAI) -> None:
    [choice] = ask(client, max_tokens=30).choices
    assert choice.finish_reason in ("stop", "length")
    assert choice.message.tool_calls is None
    assert choice.message.content


def test_with_no_choice_a_call_is_text(client: openai.OpenAI) -> None:
    [choice] = ask(client, tool_choice="none", extra_body=say(TEXT_OF_A_CALL)).choices
    assert choice.message.content == TEXT_OF_A_CALL
    assert choice.finish_reason == "stop"
    assert choice.message.tool_calls is None


def test_tools_and_a_format_for_the_rest(client: openai.OpenAI) -> None:
    """Either calls, or an answer in the form."""
    form: Any = {"type": "json_schema", "json_schema": {"name": "sum", "schema": Sum.model_json_schema()}}
    kinds = set()
    for choice in ask(client, response_format=form, n=3, max_tokens=100).choices:
        if choice.finish_reason == "stop":
            Sum.model_validate_json(choice.message.content)
        kinds.add(choice.finish_reason)
    assert "stop" in kinds


def test_a_conversation_goes_on_from_a_call(client: openai.OpenAI) -> None:
    answered = ask(client, tool_choice=ONLY_SUM).choices[0].message
    call = answered.tool_calls[0]
    messages = [USER, answered, {"role": "tool", "tool_call_id": call.id, "content": "3"}]
    [choice] = ask(client, messages=messages, max_tokens=4).choices
    assert choice.message.role == "assistant"
    parts = [USER, answered, {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "3"}]}]
    assert ask(client, messages=parts, max_tokens=4).choices[0].message == choice.message


def test_a_session_goes_on_from_a_call(tiny: httpx.Client) -> None:
    session = tiny.post("/v1/sessions").json()["id"]
    asked = {"session_id": session, "tools": TOOLS, "max_tokens": 400, "seed": 1}
    first = tiny.post(CHAT, json={**asked, "messages": [USER], "tool_choice": ONLY_SUM}).json()
    [call] = first["choices"][0]["message"]["tool_calls"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "The sum is known."}
    second = tiny.post(CHAT, json={**asked, "messages": [result], "tool_choice": ONLY_SUM})
    assert second.json()["choices"][0]["finish_reason"] == "tool_calls", second.text
    held = tiny.get(f"/v1/sessions/{session}/text").json()["text"]
    assert held.count("You can call tools.") == 1
    arguments = call["function"]["arguments"]
    assert f'{{"name": "sum", "arguments": {arguments}}}\n</tool_call><|end|><|user|><tool_response>\nThe sum' in held
    tiny.delete(f"/v1/sessions/{session}")


def test_tokenize_counts_the_tools(tiny: httpx.Client) -> None:
    asked = {"messages": [USER], "tools": TOOLS}
    counted = tiny.post("/tokenize", json=asked).json()["count"]
    answered = tiny.post(CHAT, json={**asked, "max_tokens": 1}).json()
    assert counted == answered["usage"]["prompt_tokens"]
    assert counted > tiny.post("/tokenize", json={"messages": [USER]}).json()["count"]


def named(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def allowed(*tools: Any, **more: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": list(tools), **more}}


BAD_FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": ""}}


def open_object(**more: Any) -> dict[str, Any]:
    return {"tools": [named("f", parameters={"type": "object", **more})], "tool_choice": "required"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [named("no spaces")]}, "tools.0.function.name"),
        ({"tools": [named("n" * 65)]}, "tools.0.function.name"),
        ({"tools": [named("f"), named("f")]}, "tools"),
        ({"tools": [named(f"f{number}") for number in range(129)]}, "tools"),
        ({"tools": [named("f", parameters=[])]}, "tools.0.function.parameters"),
        ({"tools": [named("f", parameters={"$ref": "#/$defs/none"}, strict=True)]}, "tools.0.function.parameters"),
        ({"tools": [named("f", parameters={"enum": ["x" * (1 << 18)]})]}, "tools.0.function.parameters"),
        ({"tools": [named("f"), named("g", parameters={"type": "array"}, strict=True)]}, "tools.1.function.parameters"),
        (open_object(properties={"a": {"not": {}}}), "tools.0.function.parameters"),
        (open_object(properties={"a": {"$ref": "http://example.com"}}), "tools.0.function.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": ONLY_SUM}, "tool_choice"),
        ({"tools": [named("f")], "tool_choice": ONLY_SUM}, "tool_choice"),
        ({"tools": [named("f")], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [named("f")], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [named("f")], "tool_choice": {**named("f"), "more": 1}}, "tool_choice"),
        ({"tools": [named("f")], "tool_choice": named("f", more=1)}, "tool_choice"),
        ({"tools": [named("f")], "tool_choice": allowed(named("f"), more=1)}, "tool_choice"),
        ({"tools": [named("f")], "tool_choice": allowed(named("f", more=1))}, "tool_choice"),
        ({"tools": [named("f")], **BAD_FORMAT}, "response_format.json_schema.schema"),
        ({"tools": [named("f")], "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{**USER, "tool_call_id": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{**USER, "name": "me"}]}, "messages.0.name"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages.1.content"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages.1.tool_calls.0.type"),
        ({"messages": [{**USER, "tool_calls": [{"id": "x", **CALL}]}]}, "messages.0.tool_calls"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(tiny: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = tiny.post(CHAT, json={"messages": [USER], "max_tokens": 1, **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param, response.text


def test_the_old_names_say_what_to_use(tiny: httpx.Client) -> None:
    response = tiny.post(CHAT, json={"messages": [USER], "functions": [{"name": "f"}]})
    assert "use" in response.json()["error"]["message"]
    assert "tools" in response.json()["error"]["message"]
