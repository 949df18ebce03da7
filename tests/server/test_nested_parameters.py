"""Of all fields that the official client's types know, at any depth, those in the table are taken; all others are
refused by the name of the parameter that they are in.

The table is read with docs/api.md beside it: what stands here is honoured, or is told there to change nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from pydantic import BaseModel, ValidationError

from server.responses.schemas import ResponseRequest
from server.schemas import ChatRequest, CompletionRequest
from tests.server.client_types import Json, requests

SAMPLING = r"""
    model(=.*)?
    (frequency_penalty|presence_penalty|temperature|top_p|n|seed|stop|max_tokens|user)
    stream_options\.(include_obfuscation=False|include_usage=(True|False))
    stream=True
"""
CHAT = (
    SAMPLING
    + r"""
    messages<(developer|system|user|assistant|tool)>\.(content(<text>\.(text|type=text))?|role=\w+|tool_call_id)
    messages<assistant>\.tool_calls<function>\.(id|type=function|function\.(arguments|name))
    (max_completion_tokens|metadata|prompt_cache_key|safety_identifier)
    (logprobs|parallel_tool_calls)=(True|False)
    (modalities=text|reasoning_effort=none|verbosity=medium|store=False|service_tier=(auto|default))
    response_format<(text|json_object|json_schema)>\.type=\w+
    response_format<json_schema>\.json_schema\.(name|description|schema|strict=(True|False))
    tool_choice=(none|auto)
    tools<function>\.(type=function|function\.(name|description|parameters|strict=(True|False)))
"""
)
COMPLETIONS = (
    SAMPLING
    + r"""
    (prompt|best_of|logprobs|echo=(True|False))
"""
)
RESPONSES = r"""
    model(=.*)?
    (input|instructions|max_output_tokens|max_tool_calls|metadata|previous_response_id|prompt_cache_key)
    (safety_identifier|temperature|top_p|user|stream=True|store=(True|False)|parallel_tool_calls=(True|False))
    (background=False|include=message\.output_text\.logprobs|reasoning\.effort=none|truncation=disabled)
    (stream_options\.include_obfuscation=False|service_tier=(auto|default)|text\.verbosity=medium)
    input<[a-z|]+><message>\.(id|role=\w+|type=message|status=\w+|content)
    input<[a-z|]+><message>\.content<(input|output)_text>\.(text|type=\w+|(annotations|logprobs).*)
    input<function_call>\.(arguments|call_id|name|type=function_call|id|status=\w+)
    input<function_call_output>\.(call_id|type=function_call_output|id|status=\w+|output.*)
    text\.format<(text|json_object|json_schema)>\.type=\w+
    text\.format<json_schema>\.(name|description|schema|strict=(True|False))
    tool_choice=(none|auto)
    tools<function>\.(type=function|name|description|parameters|strict=(True|False))
"""


@dataclass(frozen=True)
class Route:
    model: type[BaseModel]
    types: type
    taken: str
    least: Json


ROUTES = {
    "chat": Route(ChatRequest, chat_create_params.CompletionCreateParamsStreaming, CHAT, {}),
    "completions": Route(CompletionRequest, completion_create_params.CompletionCreateParamsStreaming, COMPLETIONS, {}),
    "responses": Route(
        ResponseRequest, response_create_params.ResponseCreateParamsStreaming, RESPONSES, {"input": "x"}
    ),
}


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_each_is_in_the_table_or_refused_by_name(route: Route) -> None:
    lines = {re.compile(line.strip()) for line in route.taken.split("\n") if line.strip()}
    used = set()
    for path, body in requests(route.types):
        told = {line for line in lines if line.fullmatch(path)}
        parameter = re.split(r"[.<=]", path)[0]
        if (refused := refusal(route, body)) is None:
            assert told, f"{path} is taken, and the table does not tell it"
            used |= told
        else:
            assert refused == parameter, f"{path} is refused as {refused}"
    assert used == lines, "the table tells of fields that are not taken"


def refusal(route: Route, body: Json) -> str | None:
    """The parameter that is named."""
    try:
        route.model.model_validate({**route.least, **body})
    except ValidationError as error:
        first = error.errors()[0]
        return str(first["loc"][0]) if first["loc"] else first["msg"].removeprefix("Value error, ").partition(":")[0]
    return None
