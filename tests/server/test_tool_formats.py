"""Calls in what a model says, read in pieces of any size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.settings import SettingError, Settings
from server.tool_formats import FORMATS, Call, CallDelta, format_of

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"
NAMES = frozenset({"f", "get_it"})
NASTY = '{"a": "}<\\"{</tool_call>; [", "b": [1, {"c": null}], "\\u00e9": "\U0001f600"}'
F, G = '{"name": "f", "arguments": {"a": 1}}', '{"arguments": { }, "id": 7, "name": "get_it"}'
CUT = '{"name": "f", "arguments": {"a": 1'
UNKNOWN = '{"name": "unknown", "arguments": {}}'


def hermes(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def llama(call: str) -> str:
    return call.replace('"arguments"', '"parameters"')


def heard(name: str, pieces: list[str]) -> tuple[str, list[tuple[str | None, str]]]:
    """The text, and each call's name and arguments; each has its id and its name in its first piece alone."""
    parser = FORMATS[name].parser(NAMES)
    text, calls = "", dict[int, CallDelta]()
    for parsed in [*map(parser.push, pieces), parser.finish()]:
        text += parsed.text
        for call in parsed.calls:
            known = calls.get(call.index)
            assert (known is None) == bool(call.id) == bool(call.name)
            whole = (known.arguments if known else "") + call.arguments
            calls[call.index] = CallDelta(call.index, whole, call.id, known.name if known else call.name)
    assert parser.called == bool(calls)
    assert list(calls) == list(range(len(calls)))
    return text, [(call.name, call.arguments) for call in calls.values()]


CASES: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", "Hello <b> you  \n", "Hello <b> you  \n", []),
    ("hermes", f"Sure.\n{hermes(F, G)}\n", "Sure.", [("f", '{"a": 1}'), ("get_it", "{ }")]),
    ("hermes", hermes('{"name": "f", "arguments": ' + NASTY + "}"), "", [("f", NASTY)]),
    ("hermes", f"{hermes(F)} and more", " and more", [("f", '{"a": 1}')]),
    ("hermes", f"<tool_call>{F}<tool_call>{G}", "", [("f", '{"a": 1}'), ("get_it", "{ }")]),
    ("hermes", f"<tool_call>{F}rest", "rest", [("f", '{"a": 1}')]),
    ("hermes", f"<{hermes(F)}", "<", [("f", '{"a": 1}')]),
    ("hermes", hermes(UNKNOWN), hermes(UNKNOWN), []),
    ("hermes", hermes("no JSON"), hermes("no JSON"), []),
    ("hermes", hermes('{"name": "f"}'), "", [("f", "{}")]),
    ("hermes", hermes('{"name": "f", "arguments": null, "x": 12}'), "", [("f", "{}")]),
    ("hermes", hermes('{"name": "f", "arguments": "{\\"a\\": 1}"}'), "", [("f", '{"a": 1}')]),
    ("hermes", f"<tool_call>{CUT}", "", [("f", '{"a": 1')]),
    ("hermes", 'text <tool_call>{"na', 'text <tool_call>{"na', []),
    ("hermes", "text <tool_c", "text <tool_c", []),
    ("llama3_json", "Hello {", "Hello {", []),
    ("llama3_json", llama(F), "", [("f", '{"a": 1}')]),
    ("llama3_json", f" <|python_tag|>{llama(F)}; {llama(G)}", "", [("f", '{"a": 1}'), ("get_it", "{ }")]),
    ("llama3_json", llama(UNKNOWN), llama(UNKNOWN), []),
    ("llama3_json", '{"x": 1}', '{"x": 1}', []),
    ("llama3_json", f"{llama(F)} and {llama(F)}", f" and {llama(F)}", [("f", '{"a": 1}')]),
    ("llama3_json", f"text {llama(F)}", f"text {llama(F)}", []),
    ("llama3_json", llama(CUT), "", [("f", '{"a": 1')]),
    ("llama3_json", "<|py", "<|py", []),
    ("llama3_json", f"; {llama(F)}", f"; {llama(F)}", []),
    ("mistral", "Hello [TOOL", "Hello [TOOL", []),
    ("mistral", f"Hi [TOOL_CALLS] [{F}, {G}]", "Hi", [("f", '{"a": 1}'), ("get_it", "{ }")]),
    ("mistral", f"[TOOL_CALLS][{UNKNOWN}]", f"[TOOL_CALLS][{UNKNOWN}]", []),
    ("mistral", "[TOOL_CALLS][1]", "[TOOL_CALLS][1]", []),
    ("mistral", "[TOOL_CALLS]", "[TOOL_CALLS]", []),
    ("mistral", f"[TOOL_CALLS][{CUT}", "", [("f", '{"a": 1')]),
    ("mistral", f'[TOOL_CALLS]f{NASTY}[TOOL_CALLS]get_it[ARGS]{{"x": 2}}', "", [("f", NASTY), ("get_it", '{"x": 2}')]),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{"a": 2}', "", [("f", '{"a": 2}')]),
    ("mistral", '[TOOL_CALLS]no{"a": 1}', '[TOOL_CALLS]no{"a": 1}', []),
]


@pytest.mark.parametrize(("name", "said", "text", "calls"), CASES)
def test_what_is_said_is_text_and_calls(name: str, said: str, text: str, calls: list[tuple[str, str]]) -> None:
    assert heard(name, [said]) == (text, calls)
    assert heard(name, list(said)) == (text, calls)


@settings(max_examples=100, deadline=None)
@given(case=st.sampled_from(CASES), data=st.data())
def test_it_does_not_matter_where_the_pieces_end(
    case: tuple[str, str, str, list[tuple[str, str]]], data: st.DataObject
) -> None:
    name, said, text, calls = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=8)))
    pieces = [said[start:end] for start, end in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    assert heard(name, pieces) == (text, calls)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    arguments=st.lists(
        st.dictionaries(st.text(max_size=9), st.none() | st.integers() | st.lists(st.text(max_size=9)), max_size=3),
        min_size=1,
        max_size=3,
    ),
)
def test_calls_that_were_written_are_read_again(name: str, arguments: list[dict[str, object]]) -> None:
    calls = [Call(str(number), ("f", "get_it")[number % 2], each) for number, each in enumerate(arguments)]
    text, read = heard(name, list(FORMATS[name].written(calls)))
    assert text == ""
    assert [(called, json.loads(given)) for called, given in read] == [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_template_tells_its_format(name: str) -> None:
    template = (TEMPLATES / f"{name}.jinja").read_text()
    assert format_of(template) == (FORMATS[name], True)
    others = set(FORMATS) - {name}
    assert all(format_of(template, other) == (FORMATS[other], False) for other in others)


def test_templates_of_other_formats_are_not_taken_for_one() -> None:
    for template in ("", "{{ messages }}", "<tool_call>{{ name }}<arg_key>", "<tool_call>\n<function={{ name }}>"):
        assert format_of(template) == (FORMATS["hermes"], False)


def test_the_setting_takes_each_format() -> None:
    assert {Settings(tool_format=name).tool_format for name in FORMATS} == set(FORMATS)
    with pytest.raises(SettingError, match="tool_format"):
        Settings(tool_format="xml")


def test_ids_are_what_templates_take() -> None:
    mistral = FORMATS["mistral"]
    assert len(mistral.call_id()) == len(mistral.past_id("call_of_another_server")) == 9
    assert mistral.past_id("abcdefgh1") == "abcdefgh1"
    assert FORMATS["hermes"].past_id("any id") == "any id"
    assert FORMATS["hermes"].call_id() != FORMATS["hermes"].call_id()
