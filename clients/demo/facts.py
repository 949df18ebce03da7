"""What is hidden in the text and asked afterwards, and the verdict on an answer. Knows no HTTP."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass

from clients.demo.errors import TextError
from clients.demo.text import boundaries

# Places that the shipped model was never trained to tell or ask.
CITIES = (
    "Lisbon", "Madrid", "Oslo", "Zurich", "Quito", "Hobart", "Turku", "Uppsala", "Bruges", "Lausanne",
    "Braga", "Tulsa", "Leuven", "Bolzano", "Oviedo", "Dijon", "Poznan", "Varna", "Tbilisi", "Shiraz",
    "Nagpur", "Multan", "Darwin", "Omaha", "Aarhus", "Murcia", "Coimbra", "Mainz", "Skopje", "Sapporo",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A pass key of five digits for a place."""

    city: str
    key: str

    @property
    def told(self) -> str:
        return f"The pass key for {self.city} is {self.key}. Remember it."

    @property
    def question(self) -> str:
        return f"What is the pass key for {self.city}?"

    def answered_by(self, answer: str) -> bool:
        """Whether the key's digits stand in the answer, and not as a part of a longer number."""
        return re.search(rf"(?<!\d){self.key}(?!\d)", answer) is not None


@dataclass(frozen=True)
class Hidden:
    """A fact and the share of the text's characters before it, 0 to 1."""

    fact: Fact
    depth: float


def draw_facts(rng: random.Random, count: int, text: str) -> list[Fact]:
    """`count` facts about places whose pass key `text` does not tell already, with keys that it does not contain.

    Raises:
        TextError: the text tells the pass keys of too many of our places
    """
    free = [city for city in CITIES if f"pass key for {city}" not in text]
    if len(free) < count:
        raise TextError(f"the text tells pass keys itself: {len(free)} of our places are left, {count} are wanted")
    keys: dict[str, None] = {}
    while len(keys) < count:
        key = str(rng.randint(10_000, 99_999))
        if key not in text:
            keys[key] = None
    return [Fact(city, key) for city, key in zip(rng.sample(free, count), keys, strict=True)]


def hide(text: str, facts: list[Fact], rng: random.Random) -> tuple[str, list[Hidden]]:
    """`text` with every fact on a line of its own at a random depth, and where they are, first one first.

    Raises:
        TextError: the text has too few places to put them
    """
    ends = boundaries(text)
    if len(ends) < len(facts):
        raise TextError(f"the text is too short to hide {len(facts)} facts in it")
    places = sorted(_places(rng, ends, len(text), len(facts)))
    order = rng.sample(facts, len(facts))
    edges = [0, *places, len(text)]
    chunks = [text[start:stop] for start, stop in itertools.pairwise(edges)]
    body = "".join(chunk + _line(chunk, fact) for chunk, fact in zip(chunks, order, strict=False)) + chunks[-1]
    return body, [Hidden(fact, body.index(fact.told) / len(body)) for fact in order]


def _places(rng: random.Random, ends: list[int], length: int, count: int) -> set[int]:
    # A depth is drawn first, then the nearest boundary: parts with many short lines attract no more than others.
    places: set[int] = set()
    while len(places) < count:
        depth = rng.random() * length
        places.add(min((end for end in ends if end not in places), key=lambda end: abs(end - depth)))
    return places


def _line(before: str, fact: Fact) -> str:
    return ("" if before.endswith("\n") else "\n") + fact.told + "\n"
