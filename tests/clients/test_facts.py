"""Facts: drawn, hidden each on its line, and told right or wrong."""

from __future__ import annotations

import random

import pytest

from clients.demo.errors import TextError
from clients.demo.facts import CITIES, Fact, draw_facts, hide
from clients.demo.text import reference

LISBON = Fact("Lisbon", "71432")


def test_the_wording() -> None:
    assert LISBON.told == "The pass key for Lisbon is 71432. Remember it."
    assert LISBON.question == "What is the pass key for Lisbon?"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The pass key for Lisbon is 71432.", True),
        ("71432", True),
        ("It is 171432.", False),
        ("It is 714320.", False),
        ("It is 71433.", False),
        ("", False),
    ],
)
def test_the_verdict(answer: str, right: bool) -> None:
    assert LISBON.answered_by(answer) is right


def test_facts_differ_and_repeat_with_the_seed() -> None:
    first, second = (draw_facts(random.Random(7), 12, "") for _ in range(2))
    assert first == second
    assert len({fact.city for fact in first}) == len({fact.key for fact in first}) == 12


def test_places_that_the_text_tells_already_are_left_out() -> None:
    text = " ".join(f"The pass key for {city} is 12345." for city in CITIES[1:])
    assert [fact.city for fact in draw_facts(random.Random(7), 1, text)] == [CITIES[0]]
    with pytest.raises(TextError, match="1 of our places are left"):
        draw_facts(random.Random(7), 2, text)


def test_each_fact_is_hidden_on_a_line_of_its_own() -> None:
    text = reference()[:50_000]
    facts = draw_facts(random.Random(1), 10, text)
    body, hidden = hide(text, facts, random.Random(1))
    lines = body.splitlines()
    assert all(lines.count(fact.told) == 1 for fact in facts)
    assert "".join(body.split()) != "".join(text.split())
    for fact in facts:
        body = body.replace(fact.told + "\n", "")
    assert body == text
    assert [item.depth for item in hidden] == sorted(item.depth for item in hidden)
    assert {item.fact for item in hidden} == set(facts)


def test_depth_is_where_the_fact_is() -> None:
    text = reference()[:50_000]
    body, hidden = hide(text, [LISBON], random.Random(3))
    assert hidden[0].depth == pytest.approx(body.index("71432") / len(body), abs=0.01)


def test_sentences_on_one_line_make_room() -> None:
    body, _ = hide("It rained. It snowed. It hailed.", [LISBON], random.Random(0))
    assert LISBON.told in body.splitlines()


def test_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(TextError, match="too short to hide 1"):
        hide("word", [LISBON], random.Random(0))
