"""Whatever is drawn from what a form allows is a call of the request's tools, in each format; no model is needed."""

from __future__ import annotations

import json
import random
from itertools import compress
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engine import Finished, Timing, Token, Usage
from server.choices import Choice
from server.errors import ApiError
from server.grammar import Grammars
from server.structured_schemas import ResponseFormat
from server.tokenizer import TextTokenizer
from server.tool_formats import FORMATS, CallDelta, merged
from server.tool_schemas import Tool, ToolChoice
from server.tools import Form, Forms, Wanted

END, LANDMARK, VOCABULARY = 4, 5, 4200
MARKERS = {"hermes": "<tool_call>", "llama3_json": "<|python_tag|>", "mistral": "[TOOL_CALLS]"}
SHORT: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/small"}, "b": {"enum": ["x", "y}]"]}},
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"small": {"type": "integer", "minimum": 1, "maximum": 9}},
}


def tool(name: str, strict: bool = True) -> Tool:
    function = {"name": name, "parameters": SHORT, "strict": strict}
    return Tool.model_validate({"type": "function", "function": function})


@pytest.fixture(scope="module", params=["text", "control tokens"])
def tokenizer(request: pytest.FixtureRequest, repository: Path) -> TextTokenizer:
    """The shipped one, whose vocabulary has no markers, or has them as control tokens."""
    loaded = Tokenizer.from_file(str(repository / "models" / "cairn-4m" / "tokenizer.json"))
    if request.param != "text":
        loaded.add_special_tokens([*MARKERS.values(), "</tool_call>"])
    return TextTokenizer(loaded, LANDMARK, [END])


def forms(tokenizer: TextTokenizer, name: str) -> Forms:
    return Forms(Grammars(tokenizer, VOCABULARY, [END], LANDMARK), tokenizer, FORMATS[name])


def tokens_of(tokenizer: TextTokenizer, text: str, marker: str) -> list[int]:
    """Tokens of a text that may end with the marker."""
    control = tokenizer.control_token(marker)
    before, found, _ = text.partition(marker)
    return tokenizer.encode(before) + ([control] if found and control is not None else tokenizer.encode(found))


def walk(tokenizer: TextTokenizer, form: Form, seed: int, begin: list[int]) -> tuple[str, list[CallDelta], str]:
    """What an answer that begins with `begin` and goes on at random comes to: its text, its calls, why it ended."""
    assert form.constraint is not None
    constraint, draw = form.constraint(), random.Random(seed)
    choice = Choice(0, tokenizer.pieces, (), form.parser(), form.revealed)
    text, calls, reason = "", list[CallDelta](), "length"
    for place in range(400):
        allowed = list(compress(range(VOCABULARY), constraint.allowed()))
        assert LANDMARK not in allowed
        assert tokenizer.pieces.spelled(allowed[-1]), "ids of a padded embedding say nothing"
        token = begin[place] if place < len(begin) else END if END in allowed and place % 3 else draw.choice(allowed)
        assert token in allowed
        constraint.accept(token)
        if delta := choice.push(Token(0, token)):
            text, calls = text + delta.text, [*calls, *delta.calls]
        if token == END:
            reason = "stop"
            break
    last, ended = choice.finish(Finished(0, reason, Usage(1, 0, 1), Timing(0, 0, 0)))
    if last:
        text, calls = text + last.text, [*calls, *last.calls]
    return text, list(merged(calls)), ended.reason


def valid(call: CallDelta) -> bool:
    arguments = json.loads(call.arguments)
    assert call.name in ("one", "another")
    return arguments.keys() <= {"a", "b"} and 1 <= arguments["a"] <= 9 and arguments.get("b", "x") in ("x", "y}]")


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("parallel", [True, False])
def test_a_required_call(tokenizer: TextTokenizer, name: str, parallel: bool) -> None:
    wanted = Wanted((tool("one"), tool("another", strict=False)), ToolChoice(mode="required"), parallel)
    form = forms(tokenizer, name).of(wanted)
    counts = set()
    for seed in range(6):
        text, calls, reason = walk(tokenizer, form, seed, [])
        if reason != "length":
            assert (text, reason) == ("", "tool_calls")
            assert all(map(valid, calls))
            counts.add(len(calls))
    assert 1 in counts
    assert 0 not in counts
    assert parallel or counts == {1}


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("parallel", [True, False])
def test_a_strict_function_is_held_once_its_call_has_begun(tokenizer: TextTokenizer, name: str, parallel: bool) -> None:
    form = forms(tokenizer, name).of(Wanted((tool("one"),), None, parallel))
    said = "" if name == "llama3_json" else "Well, "
    begin = (
        tokenizer.encode("{") if name == "llama3_json" else tokens_of(tokenizer, said + MARKERS[name], MARKERS[name])
    )
    for seed in range(4):
        text, calls, reason = walk(tokenizer, form, seed, begin)
        assert text.startswith(said.strip())
        assert calls
        assert reason == "length" or all(map(valid, calls))
        assert parallel or len(calls) == 1


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_where_the_model_may_choose_text_is_free(tokenizer: TextTokenizer, name: str) -> None:
    form = forms(tokenizer, name).of(Wanted((tool("one"),)))
    text, calls, reason = walk(tokenizer, form, 0, [*tokenizer.encode('No {"name": "two"}!\n'), END])
    assert (text, calls, reason) == ('No {"name": "two"}!\n', [], "stop")
    assert forms(tokenizer, name).of(Wanted((tool("one", strict=False),))).constraint is None


@pytest.mark.parametrize("name", ["hermes", "mistral"])
def test_calls_or_an_answer_in_a_form(tokenizer: TextTokenizer, name: str) -> None:
    wanted = Wanted((tool("one"),), response_format=ResponseFormat(type="json_object"))
    form = forms(tokenizer, name).of(wanted)
    text, calls, reason = walk(tokenizer, form, 0, [*tokenizer.encode('{"x": [1]}'), END])
    assert (json.loads(text), calls, reason) == ({"x": [1]}, [], "stop")
    text, calls, reason = walk(tokenizer, form, 0, tokens_of(tokenizer, MARKERS[name], MARKERS[name]))
    assert text == ""
    assert valid(calls[0])


def test_calls_that_look_like_json_leave_no_room_for_a_form(tokenizer: TextTokenizer) -> None:
    wanted = Wanted((tool("one"),), response_format=ResponseFormat(type="json_object"))
    with pytest.raises(ApiError, match="response_format"):
        forms(tokenizer, "llama3_json").of(wanted)


def test_without_end_tokens_a_grammar_ends_the_answer(tokenizer: TextTokenizer) -> None:
    constraint = Grammars(tokenizer, VOCABULARY, [], None).compile('start: "yes"')()
    for token in tokenizer.encode("yes"):
        assert constraint.allowed()[token]
        assert not constraint.ended
        constraint.accept(token)
    assert constraint.ended


def test_a_tokenizer_that_adds_a_space_spells_what_a_grammar_forces() -> None:
    """SentencePiece's way: a text gets a space before it, and what has no token of its own is bytes."""
    words = ["<end>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "y", "e", "s", "ye", "\u2581ye"]
    merges = [("y", "e"), ("\u2581", "ye")]
    made = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = TextTokenizer(made, None, [0])
    assert tokenizer.pieces.text(tokenizer.encode("yes")) == " yes"
    text = "yes \u00e9s"
    constraint, said = Grammars(tokenizer, len(words), [0], None).compile(f'start: "{text}"')(), list[int]()
    while not constraint.ended:
        said.append(next(token for token, may in enumerate(constraint.allowed()) if may))
        constraint.accept(said[-1])
    assert tokenizer.pieces.text(said) == text
