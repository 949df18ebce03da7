"""Which JSON schemas are taken: bounded in size and depth, without references to elsewhere. Knows no grammar, no HTTP.

What a schema means is `server.grammar`'s; here stands what must not even be tried, or what a grammar cannot hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

MAX_SCHEMA_CHARACTERS = 1 << 17
MAX_DEPTH = 64


class SchemaError(ValueError):
    """The schema is refused; the message says why."""


def check_bounds(value: Any) -> None:
    """SchemaError for what is too large or too deep, or no text; it may be any JSON."""
    for _, depth in _nodes(value):
        if depth > MAX_DEPTH:
            raise SchemaError(f"is nested deeper than {MAX_DEPTH} levels")
    _check_text(json.dumps(value, ensure_ascii=False))


def check_schema(schema: dict[str, Any]) -> None:
    """SchemaError for what no grammar is made of."""
    check_bounds(schema)
    if "x-guidance" in schema:
        raise SchemaError("the keyword 'x-guidance' is not supported")
    for node, _ in _nodes(schema):
        if isinstance(node, dict):
            _check_keywords(node)


def _nodes(value: Any) -> Iterator[tuple[Any, int]]:
    """All values within a value, with their depths."""
    waiting = [(value, 0)]
    while waiting:
        node, depth = waiting.pop()
        yield node, depth
        within = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        waiting += [(each, depth + 1) for each in within]


def _check_text(text: str) -> None:
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise SchemaError(f"has {len(text)} characters, the limit is {MAX_SCHEMA_CHARACTERS}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SchemaError("holds half a surrogate pair") from None


def _check_keywords(node: dict[str, Any]) -> None:
    reference = node.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise SchemaError(f"$ref: {reference[:200]!r} lies outside of the schema, and only what is in it is read")
    least, required = node.get("minProperties"), node.get("required")
    named = len(required) if isinstance(required, list) else 0
    if isinstance(least, int) and least > max(1, named):
        raise SchemaError("minProperties: more than the required ones cannot be held, since a key may come twice")
