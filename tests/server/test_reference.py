"""docs/reference.md is what the server's own OpenAPI document makes."""

from __future__ import annotations

import re
from pathlib import Path

from server.app import create_app
from server.reference import kind, reference
from server.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()


def test_the_page_is_what_the_server_makes() -> None:
    made = reference(create_app(Settings()).openapi())
    assert made == PAGE, "write it anew: python -m server.reference > docs/reference.md"


def test_every_link_leads_to_a_table() -> None:
    tables = {name.lower() for name in re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)}
    assert set(re.findall(r"\(#(\w+)\)", PAGE)) <= tables


def test_bounds_are_told() -> None:
    assert kind({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {"type": "null"}]}) == (
        "number, above 0 to 1"
    )
    assert kind({"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 9}, "maxItems": 4}) == (
        "list of (string, 1 to 9 characters), at most 4 items"
    )
    assert kind({"enum": ["asc", "desc"]}) == '`"asc"`, `"desc"`'
