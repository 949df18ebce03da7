"""The part of a passage that is shown."""

from __future__ import annotations

import pytest

from clients.demo.excerpt import excerpt, locate
from clients.demo.facts import Fact

LISBON = Fact("Lisbon", "71432")
TOLD = LISBON.told


def test_the_fact_is_in_the_middle() -> None:
    part = excerpt("a " * 500 + "\n" + TOLD + "\n" + " b" * 500, LISBON, width=100)
    assert part.fact == TOLD
    assert part.before.startswith("…")
    assert part.after.endswith("…")
    assert len(part.before + part.fact + part.after) <= 102


def test_a_short_passage_is_shown_whole() -> None:
    part = excerpt(f"before\n\n{TOLD}\n  after", LISBON)
    assert (part.before, part.fact, part.after) == ("before ", TOLD, " after")


def test_a_passage_without_the_fact() -> None:
    part = excerpt("word " * 100, LISBON, width=20)
    assert (part.before, part.fact) == ("", "")
    assert part.after == "word word word word …"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"x {TOLD} y", TOLD),
        ("some text. The pass key for Lis", "The pass key for Lis"),
        ("432. Remember it. More", "432. Remember it."),
        ("key for Lisbon is 71", "key for Lisbon is 71"),
        ("2. Remember it. More", None),
        ("The pass key for Leuven is 55555. Remember it.", None),
        ("", None),
    ],
)
def test_a_fact_over_the_edge_is_found(text: str, found: str | None) -> None:
    place = locate(text, LISBON)
    assert (text[slice(*place)] if place else None) == found
