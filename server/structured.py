"""From what a request says about the form of its answer to a constraint; what cannot be held is refused by name.

Knows the wire's fields and the grammars; no engine and no HTTP. All of it may take up to a second, so it is nothing
for the event loop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engine import Constraint
from server.errors import ApiError
from server.grammar import GrammarError, Grammars, choice_grammar, json_rule, regex_grammar, written_grammar
from server.structured_schemas import ResponseFormat, StructuredOutputs

MakeConstraint = Callable[[], Constraint]
FORMAT = "response_format.json_schema.schema"


def constraint_of(
    grammars: Grammars, response_format: ResponseFormat | None, structured: StructuredOutputs | None
) -> MakeConstraint | None:
    """Makes what each answer must keep to; None if it is free. Raises ApiError: a 400 that names the field."""
    rule = format_rule(response_format)
    if structured is None:
        return None if rule is None else compiled(grammars, f"start: {rule}", FORMAT)
    if rule is not None:
        raise ApiError(400, "structured_outputs: not together with response_format", "structured_outputs")
    param = "structured_outputs." + structured.kind
    with naming(param):
        return grammars.compile(_grammar(structured))


def format_rule(response_format: ResponseFormat | None) -> str | None:
    """The Lark expression that `response_format` stands for; None for free text."""
    schema = response_format.json_of if response_format else None
    with naming(FORMAT):
        return None if schema is None else json_rule(schema)


def compiled(grammars: Grammars, grammar: str, param: str) -> MakeConstraint:
    """The constraint of a grammar; ApiError that names `param` if there is none."""
    with naming(param):
        return grammars.compile(grammar)


@contextmanager
def naming(param: str) -> Iterator[None]:
    """A GrammarError becomes a 400 that names `param`."""
    try:
        yield
    except GrammarError as error:
        raise ApiError(400, f"{param}: {error}", param, "invalid_value") from error


def _grammar(asked: StructuredOutputs) -> str:
    if asked.regex is not None:
        return regex_grammar(asked.regex)
    if asked.choice is not None:
        return choice_grammar(asked.choice)
    if asked.grammar is not None:
        return written_grammar(asked.grammar)
    return "start: " + json_rule(_schema(asked.json_))


def _schema(given: dict[str, Any] | str | None) -> dict[str, Any]:
    """vLLM takes the schema as text, too."""
    try:
        schema = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise GrammarError("must be a JSON schema, an object or its text")
    return schema
