"""Which JSON schemas are taken: bounded in size and depth, without references to elsewhere. Knows no grammar, no HTTP.

What a schema means is `server.grammar`'s; here stands what must not even be tried, or what a grammar cannot hold.
"""

from __future__ import annotations

import json
from typing import Any

MAX_SCHEMA_CHARACTERS = 1 << 17
MAX_DEPTH = 64


class SchemaError(ValueError):
    """The schema is refused; the message says why."""


def check_schema(schema: dict[str, Any]) -> None:
    """SchemaError for what no grammar is made of."""
    nodes: list[tuple[Any, int]] = [(schema, 0)]
    if "x-guidance" in schema:
        raise SchemaError("the keyword 'x-guidance' is not supported")
    while nodes:
        node, depth = nodes.pop()
        if depth > MAX_DEPTH:
            raise SchemaError(f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, dict):
            _check_keywords(node)
            nodes += [(value, depth + 1) for value in node.values()]
        elif isinstance(node, list):
            nodes += [(value, depth + 1) for value in node]
    _check_text(json.dumps(schema, ensure_ascii=False))


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
