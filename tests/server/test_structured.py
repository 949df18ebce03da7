"""Answers in a given form, of a model that knows nothing: what ends by itself is valid, whatever else is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me of it."}]
Events = Callable[[httpx.Response], list[dict[str, Any]]]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["a", 'quote "', "line\n"]
    weight: int = Field(ge=-5, le=250)


class Thing(BaseModel):
    """Nested, optional, bounded, with a pattern and a reference."""

    model_config = ConfigDict(extra="forbid")
    code: str = Field(pattern="^[A-Z]{2}-[0-9]{3}$")
    name: str = Field(max_length=6)
    parts: list[Part] = Field(min_length=1, max_length=3)
    best: Part | None
    ratio: float = Field(ge=0, le=1)
    known: bool


FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "thing", "schema": Thing.model_json_schema()}}
STRICT: Any = {"type": "json_schema", "json_schema": {**FORMAT["json_schema"], "strict": True}}


@pytest.fixture
def client(tiny: httpx.Client) -> Iterator[openai.OpenAI]:
    """The official client of the random model."""
    with openai.OpenAI(base_url=f"{tiny.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def answer(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post(CHAT, json={"messages": MESSAGES, "max_tokens": 400, **fields})
    assert response.status_code == 200, response.text
    answered: dict[str, Any] = response.json()
    return answered


def ended(client: httpx.Client, **fields: Any) -> list[str]:
    """The answers that ended by themselves."""
    choices = answer(client, **fields)["choices"]
    assert {choice["finish_reason"] for choice in choices} <= {"stop", "length"}
    return [choice["message"]["content"] for choice in choices if choice["finish_reason"] == "stop"]


def test_json_of_a_schema_is_valid_through_the_official_client(client: openai.OpenAI) -> None:
    told = client.chat.completions.create(
        model="tiny", messages=MESSAGES, response_format=STRICT, n=3, seed=1, max_tokens=400
    )
    texts = [choice.message.content or "" for choice in told.choices if choice.finish_reason == "stop"]
    assert len(texts) >= 2
    things = [Thing.model_validate_json(text) for text in texts]
    assert len({thing.code for thing in things}) > 1


def test_a_class_is_parsed_as_clients_do_it(client: openai.OpenAI) -> None:
    told = client.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Part, seed=2, max_tokens=400)
    assert isinstance(told.choices[0].message.parsed, Part)


@pytest.mark.parametrize(
    "shift",
    [
        {"temperature": 0},
        {"temperature": 2, "top_k": 3, "min_p": 0.01},
        {"repetition_penalty": 10, "presence_penalty": 2, "frequency_penalty": 2},
        {"logit_bias": {"4": 100, "5": 100, "1": 100, "77": 100}},
        {"ignore_eos": True},
        {"logprobs": True, "top_logprobs": 2},
    ],
)
def test_whatever_shifts_the_draw(tiny: httpx.Client, shift: dict[str, Any]) -> None:
    texts = ended(tiny, structured_outputs={"json": Part.model_json_schema()}, n=2, seed=3, max_tokens=120, **shift)
    assert texts or shift == {"temperature": 0}
    for text in texts:
        Part.model_validate_json(text)


def test_a_cut_answer_says_so(tiny: httpx.Client) -> None:
    [choice] = answer(tiny, response_format=FORMAT, max_tokens=5)["choices"]
    assert choice["finish_reason"] == "length"


def test_any_object(tiny: httpx.Client) -> None:
    texts = ended(tiny, response_format={"type": "json_object"}, n=8, seed=5, max_tokens=40, logit_bias={"97": 3})
    for text in texts:
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d{4}-[\d.]{2}\\d\w{2}\s?[^\W]\D",
        r"(yes|no), [a-z]{3,9}\.",
        r'[^"]{1,8}/"\\',
        "[\u00e0-\u00ff\U0001f600-\U0001f64f]{2,5}",
        r"(?s:.){0,12}",
    ],
)
def test_a_pattern_matches_the_whole_answer(tiny: httpx.Client, pattern: str) -> None:
    texts = ended(tiny, structured_outputs={"regex": pattern}, n=8, seed=1, temperature=1.5)
    assert len(set(texts)) > 1
    for text in texts:
        assert re.fullmatch(pattern, text), text


def test_one_of_several_texts(tiny: httpx.Client) -> None:
    choices = ["yes", "no", 'a "quote" \\ / \n', "\u00e9\U0001f600", "yes and no", "<|end|>"]
    texts = {text for seed in (1, 100) for text in ended(tiny, structured_outputs={"choice": choices}, n=16, seed=seed)}
    assert texts <= set(choices)
    assert len(texts) >= 3


@pytest.mark.parametrize(
    "grammar",
    [
        'start: sum\nsum: NUMBER ("+" NUMBER){1,3}\nNUMBER: /[0-9]{1,3}/',
        'root ::= num ("+" num){1,3}\nnum ::= [0-9]{1,3}',
    ],
)
def test_a_grammar_in_lark_and_in_gbnf(tiny: httpx.Client, grammar: str) -> None:
    texts = ended(tiny, structured_outputs={"grammar": grammar}, n=8, seed=1)
    assert len(set(texts)) > 1
    for text in texts:
        assert re.fullmatch(r"[0-9]{1,3}(\+[0-9]{1,3}){1,3}", text)


def test_a_schema_as_vllm_takes_it(tiny: httpx.Client) -> None:
    schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 2, "maxItems": 4}
    for given in (schema, json.dumps(schema)):
        for text in ended(tiny, structured_outputs={"json": given}, n=4, seed=1):
            numbers = json.loads(text)
            assert 2 <= len(numbers) <= 4
            assert all(0 <= number <= 99 for number in numbers)


def test_completions_take_the_same(tiny: httpx.Client) -> None:
    fields = {"prompt": ["One", "Two"], "n": 4, "seed": 1, "max_tokens": 50}
    response = tiny.post(COMPLETIONS, json={**fields, "structured_outputs": {"regex": "[a-f]{4}"}})
    assert [choice["finish_reason"] for choice in response.json()["choices"]] == ["stop"] * 8
    assert all(re.fullmatch("[a-f]{4}", choice["text"]) for choice in response.json()["choices"])


def test_streams_seeds_and_cached_prompts_agree(tiny: httpx.Client, events: Events) -> None:
    messages = [{"role": "user", "content": "The same thing again and again. " * 12}]
    asked = {"messages": messages, "response_format": FORMAT, "seed": 9, "n": 2, "max_tokens": 60}
    first, second = answer(tiny, **asked), answer(tiny, **asked)
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    streamed = ["", ""]
    for chunk in events(tiny.post(CHAT, json={**asked, "stream": True})):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content") or ""
    texts = [[choice["message"]["content"] for choice in told["choices"]] for told in (first, second)]
    assert texts[0] == texts[1] == streamed


def test_control_tokens_are_never_said(tiny: httpx.Client) -> None:
    """Nor the landmark: not even if they are wanted most and the pattern matches their names."""
    control = {str(token): 100 for token in range(6)}
    [choice] = answer(
        tiny, structured_outputs={"regex": r"(?s:.){20,}"}, logit_bias=control, logprobs=True, max_tokens=40
    )["choices"]
    said = [token["token"] for token in choice["logprobs"]["content"]]
    assert [token for token in said[:-1] if token.startswith("<|")] == []
    assert said[-1] == "<|end|>"
    assert len(choice["message"]["content"]) >= 20


def test_log_probabilities_are_the_models_own(tiny: httpx.Client) -> None:
    asked = {"logprobs": True, "top_logprobs": 3, "max_tokens": 1, "temperature": 0}
    free = answer(tiny, **asked)["choices"][0]["logprobs"]["content"][0]
    bound = answer(tiny, structured_outputs={"choice": ["never"]}, **asked)["choices"][0]["logprobs"]["content"][0]
    assert bound["top_logprobs"] == free["top_logprobs"]
    assert bound["logprob"] < 0


def test_in_a_session_each_answer_has_its_own_form(tiny: httpx.Client) -> None:
    session = tiny.post("/v1/sessions").json()["id"]
    for pattern in ("[a-c]{5}", "[0-9]{7}"):
        [text] = ended(tiny, session_id=session, structured_outputs={"regex": pattern}, seed=1)
        assert re.fullmatch(pattern, text)
    held = tiny.get(f"/v1/sessions/{session}/text").json()["text"]
    assert re.search(r"[a-c]{5}<\|end\|><\|user\|>.*[0-9]{7}<\|end\|>$", held)
    tiny.delete(f"/v1/sessions/{session}")


SCHEMA = "response_format.json_schema.schema"


def schema(of: dict[str, Any], name: str = "x") -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": of}}}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "null"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object", "json_schema": {"name": "x"}}}, "response_format"),
        (schema({}, name="a b"), "response_format.json_schema.name"),
        (schema({"type": "strin"}), SCHEMA),
        (schema({"$ref": "https://example.com/schema.json"}), SCHEMA),
        (schema({"properties": {"a": {"$ref": "file:///etc/passwd"}}}), SCHEMA),
        (schema({"$ref": "#/$defs/none"}), SCHEMA),
        (schema({"not": {"type": "string"}}), SCHEMA),
        (schema({"type": "string", "pattern": "("}), SCHEMA),
        (schema({"allOf": [{"type": "string"}, {"type": "integer"}]}), SCHEMA),
        (schema({"type": "object", "minProperties": 3}), SCHEMA),
        (schema({"x-guidance": {"item_separator": ";"}}), SCHEMA),
        (schema(nested(70)), SCHEMA),
        (schema({"enum": ["x" * 1000] * 200}), SCHEMA),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a(?=b)"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": r"[^\s\S]"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a" * 5000}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice.0"),
        ({"structured_outputs": {"choice": ["a"] * 1025}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": "["}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": {"type": 7}}}, "structured_outputs.json"),
        ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": 'start: "a" <|user|> "b"'}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "start: <[4]>"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "start: " + "(" * 5000}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": 'start: "' + "a" * (1 << 18) + '"'}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"guided_regex": "a"}, "guided_regex"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_held_is_refused_by_name(tiny: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = tiny.post(CHAT, json={"messages": MESSAGES, "max_tokens": 1, **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param, response.text
    assert response.elapsed.total_seconds() < 2


def test_a_form_that_turns_out_too_complex_is_the_clients_error(tiny: httpx.Client, events: Events) -> None:
    """Its first token shows nothing of it; also in a stream, which ends in the error."""
    asked = {"messages": MESSAGES, "structured_outputs": {"regex": "(.{0,1000}){0,1000}"}, "seed": 1, "max_tokens": 200}
    response = tiny.post(CHAT, json=asked)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "constraint_failed"
    assert events(tiny.post(CHAT, json={**asked, "stream": True}))[-1]["error"] == response.json()["error"]


def test_free_text_is_still_free(tiny: httpx.Client) -> None:
    free = answer(tiny, temperature=0, max_tokens=8)["choices"][0]["message"]["content"]
    same = answer(tiny, temperature=0, max_tokens=8, response_format={"type": "text"})
    assert same["choices"][0]["message"]["content"] == free
