"""The part of a passage that is shown."""

from __future__ import annotations

import pytest

from clients.demo.excerpt import excerpt, locate

TOLD = "The pass key for Lisbon is 71432. Remember it."


def test_the_fact_is_in_the_middle() -> None:
    part = excerpt("a " * 500 + "\n" + TOLD + "\n" + " b" * 500, TOLD, width=100)
    assert part.fact == TOLD
    assert part.before.startswith("…")
    assert part.after.endswith("…")
    assert len(part.before + part.fact + part.after) <= 102


def test_a_short_passage_is_shown_whole() -> None:
    part = excerpt(f"before\n\n{TOLD}\n  after", TOLD)
    assert (part.before, part.fact, part.after) == ("before ", TOLD, " after")


def test_a_passage_without_the_fact() -> None:
    part = excerpt("word " * 100, TOLD, width=20)
    assert (part.before, part.fact) == ("", "")
    assert part.after == "word word word word …"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"x {TOLD} y", TOLD),
        ("some text. The pass key for Lis", "The pass key for Lis"),
        ("71432. Remember it. More", "71432. Remember it."),
        ("it. More", None),
        ("", None),
    ],
)
def test_a_fact_over_the_edge_is_found(text: str, found: str | None) -> None:
    place = locate(text, TOLD)
    assert (text[slice(*place)] if place else None) == found
