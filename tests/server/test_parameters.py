"""Every parameter that the official client knows is honoured, harmless or refused by name; none is unknown to us.

The names come from the installed client's own types. *Honoured*: with the fields, the answer is another one than
without. *Harmless*: accepted, since nothing here depends on it. *Refused*: 400, and the error names it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

Fields = dict[str, Any]
Verdict = Literal["honoured", "harmless", "refused"]


@dataclass(frozen=True)
class Case:
    """What a parameter does, as `fields` beside `base`, where it needs something to work on."""

    parameter: str
    verdict: Verdict
    fields: Fields
    base: Fields = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.parameter}-{self.verdict}"


def honoured(name: str, value: Any, **base: Any) -> Case:
    """`base` may hold the parameter itself, to be compared with."""
    return Case(name, "honoured", {name: value}, base)


def harmless(name: str, value: Any) -> Case:
    return Case(name, "harmless", {name: value})


def refused(name: str, value: Any, **base: Any) -> Case:
    return Case(name, "refused", {name: value}, base)


DRAWN = {"temperature": 1.5, "seed": 1}
A = "70"  # the token of the letter a
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}

EVERYWHERE = [
    refused("model", "no such model"),
    honoured("stream", True),
    honoured("temperature", 2.0, seed=1),
    honoured("top_p", 0.01, **DRAWN),
    harmless("user", "somebody"),
]
COMMON = [
    *EVERYWHERE,
    honoured("frequency_penalty", 2.0, logit_bias={A: 1}),
    honoured("presence_penalty", 2.0, logit_bias={A: 1}),
    honoured("logit_bias", {A: 100}),
    honoured("n", 2),
    honoured("seed", 2, **DRAWN),
    honoured("stop", "a", logit_bias={A: 100}),
    honoured("stream_options", {"include_usage": True}, stream=True),
    honoured("max_tokens", 2),
]
NEWER = [  # chat's and responses'
    harmless("metadata", {"a": "b"}),
    harmless("parallel_tool_calls", True),
    harmless("prompt_cache_key", "key"),
    harmless("safety_identifier", "somebody"),
    harmless("service_tier", "auto"),
    refused("service_tier", "flex"),
    refused("moderation", {"model": "omni-moderation-latest"}),
    refused("prompt_cache_options", {"mode": "explicit"}),
    refused("prompt_cache_retention", "24h"),
]
CHAT_TOOLS = [{"type": "function", "function": FUNCTION}]
TOOLS = [  # in chat
    honoured("tools", CHAT_TOOLS),
    honoured("tool_choice", "required", tools=CHAT_TOOLS, max_tokens=40),
    refused("tool_choice", "required"),
    honoured("response_format", {"type": "json_object"}),
]
CHAT = [
    *COMMON,
    *NEWER,
    *TOOLS,
    honoured("messages", [{"role": "user", "content": "Another question, and a longer one"}]),
    honoured("max_completion_tokens", 2, max_tokens=None, max_completion_tokens=6),
    honoured("logprobs", True),
    honoured("top_logprobs", 3, logprobs=True),
    harmless("store", False),
    refused("store", True),
    harmless("modalities", ["text"]),
    refused("modalities", ["text", "audio"]),
    harmless("reasoning_effort", "none"),
    refused("reasoning_effort", "low"),
    harmless("verbosity", "medium"),
    refused("verbosity", "high"),
    refused("functions", [FUNCTION]),
    refused("function_call", {"name": "f"}),
    refused("audio", {"voice": "alloy", "format": "wav"}),
    refused("prediction", {"type": "content", "content": "x"}),
    refused("web_search_options", {}),
]
COMPLETIONS = [
    *COMMON,
    honoured("prompt", "Another beginning"),
    honoured("logprobs", 1),
    honoured("echo", True),
    harmless("best_of", 1),
    refused("best_of", 2),
    refused("suffix", "the end"),
]
OUR_TOOLS = [{"type": "function", **FUNCTION}]
LOGPROBS = ["message.output_text.logprobs"]
RESPONSES = [
    *EVERYWHERE,
    *NEWER,
    honoured("input", [{"role": "user", "content": "Another question, and a longer one"}]),
    honoured("instructions", "Answer in verse."),
    honoured("max_output_tokens", 2),
    honoured("include", LOGPROBS),
    refused("include", ["reasoning.encrypted_content"]),
    honoured("top_logprobs", 3, include=LOGPROBS),
    refused("top_logprobs", 3),
    honoured("store", False),
    refused("previous_response_id", "resp_nobody"),
    harmless("stream_options", {"include_obfuscation": False}),
    refused("stream_options", {"include_obfuscation": True}, stream=True),
    harmless("truncation", "disabled"),
    refused("truncation", "auto"),
    harmless("background", False),
    refused("background", True),
    honoured("text", {"format": {"type": "json_object"}}),
    refused("text", {"format": {"type": "json_schema", "name": "x"}}),
    refused("text", {"verbosity": "high"}),
    honoured("tools", OUR_TOOLS),
    refused("tools", [{"type": "web_search"}]),
    honoured("tool_choice", "required", tools=OUR_TOOLS, max_output_tokens=40),
    refused("tool_choice", "required"),
    harmless("max_tool_calls", 3),
    harmless("reasoning", {"effort": "none"}),
    refused("reasoning", {"effort": "high"}),
    refused("access_programs", {"cyber": "standard"}),
    refused("background_options", {"completion_window": "2h"}),
    refused("context_management", [{"type": "compaction"}]),
    refused("conversation", "conv_1"),
    refused("image", {"context_compression": "enabled"}),
    refused("prompt", {"id": "pmpt_1"}),
]


@dataclass(frozen=True)
class Route:
    """A way to ask, its table, and the client's types of what may be asked there."""

    path: str
    base: Fields
    cases: list[Case]
    types: tuple[type, ...]


ROUTES = {
    "chat": Route(
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6},
        CHAT,
        (
            chat_create_params.CompletionCreateParamsNonStreaming,
            chat_create_params.CompletionCreateParamsStreaming,
        ),
    ),
    "completions": Route(
        "/v1/completions",
        {"prompt": "Hello", "max_tokens": 6},
        COMPLETIONS,
        (
            completion_create_params.CompletionCreateParamsNonStreaming,
            completion_create_params.CompletionCreateParamsStreaming,
        ),
    ),
    "responses": Route(
        "/v1/responses",
        {"input": "Hello", "max_output_tokens": 6},
        RESPONSES,
        (
            response_create_params.ResponseCreateParamsNonStreaming,
            response_create_params.ResponseCreateParamsStreaming,
        ),
    ),
}
ALL = [pytest.param(route, case, id=f"{name}-{case}") for name, route in ROUTES.items() for case in route.cases]


@pytest.mark.parametrize("name", ROUTES)
def test_every_parameter_of_the_client_is_in_the_table(name: str) -> None:
    route = ROUTES[name]
    known: set[str] = set()
    for each in route.types:
        known |= each.__required_keys__ | each.__optional_keys__  # type: ignore[attr-defined]
    assert {case.parameter for case in route.cases} == known


@pytest.mark.parametrize(("route", "case"), ALL)
def test_a_parameter_does_what_the_table_says(tiny: httpx.Client, route: Route, case: Case) -> None:
    base = {**route.base, "temperature": 0, "ignore_eos": True, **case.base}
    response = tiny.post(route.path, json={**base, **case.fields, **_stream(case)})
    if case.verdict == "refused":
        assert response.status_code in (400, 404), response.text
        assert response.json()["error"]["param"].split(".")[0] == case.parameter
    elif case.verdict == "harmless":
        assert response.status_code == 200, response.text
    else:
        assert response.status_code == 200, response.text
        assert told(response) != told(tiny.post(route.path, json=base))


def _stream(case: Case) -> Fields:
    return {"stream": True} if case.parameter == "stream_options" else {}


def told(response: httpx.Response) -> Any:
    """An answer without what is another one each time; of a stream, how many events it has."""
    if "json" not in response.headers["content-type"]:
        return response.text.count("data:")
    body = response.json()
    output = [item.get("content") or item["arguments"] for item in body.get("output", ())]
    counts = [value for value in body["usage"].values() if isinstance(value, int)]
    return body.get("choices"), output, body.get("store"), counts
