"""`python -m bench.search --haystack FILES… --tokens 20000`: is what a query is about among the passages that it finds?

Facts are hidden all over a text, the first one at its very beginning and the last one at its very end. The text is read
into a session; each fact is searched for by a question, by a phrase and by its name alone. Ten words of the text itself
are searched for, too. Names were never trained on.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.passkey import FACT, Prompt, draw_prompts
from bench.report import write_json
from bench.served import ServerProcess

CHARACTERS = 3
"""Of a token, about."""
WAYS = ("What is the pass key for {name}?", "the pass key for {name}", "{name}")
QUOTED = "ten words of the text"


@dataclass(frozen=True)
class Outcome:
    """One query; `rank` of the first passage that holds what it is about, None if none of five does."""

    haystack: str
    tokens: int
    way: str
    about: str
    rank: int | None
    milliseconds: float


def hidden(text: str, facts: list[Prompt]) -> str:
    """The text with a fact at each end, and the others at even places between, at a sentence's end."""
    pieces, last = [], 0
    for number, fact in enumerate(facts):
        cut = round(number / max(1, len(facts) - 1) * len(text))
        cut = text.find(".", cut) + 1 if 0 < cut < len(text) else cut
        pieces += [text[last:cut], FACT.format(name=fact.name, key=fact.key)]
        last = cut
    return "".join(pieces) + text[last:]


def queries(text: str, facts: list[Prompt], chance: random.Random) -> Iterator[tuple[str, str, str]]:
    """Ways to ask, what is asked, and what the passage has to hold."""
    for fact in facts:
        yield from ((way, way.format(name=fact.name), f"for {fact.name} is {fact.key}") for way in WAYS)
    words = text.split(" ")
    for _ in facts:
        start = chance.randrange(100, len(words) - 100)
        quote = " ".join(words[start : start + 10])
        yield QUOTED, quote, quote


def rank(passages: list[dict[str, Any]], start: int, end: int) -> int | None:
    """Number of the first passage that has some of the characters [start, end)."""
    for number, passage in enumerate(passages, 1):
        if passage["start_char"] < end and start < passage["end_char"]:
            return number
    return None


def outcomes(client: httpx.Client, name: str, text: str, facts: list[Prompt], seed: int) -> Iterator[Outcome]:
    """Read a text into a session and search it."""
    document = hidden(text, facts)
    session = client.post("/v1/sessions").json()["id"]
    tokens = client.post(f"/v1/sessions/{session}/append", json={"text": document}).json()["tokens"]
    for way, query, about in queries(text, facts, random.Random(seed)):
        response = client.post(f"/v1/sessions/{session}/search", json={"query": query}).raise_for_status().json()
        start = document.index(about)
        found = rank(response["passages"], start, start + len(about))
        yield Outcome(name, tokens, way, about, found, response["timings"]["prefill_ms"])
    client.delete(f"/v1/sessions/{session}")


def report(found: list[Outcome]) -> None:
    """Shares by way to ask."""
    for way in (*WAYS, QUOTED):
        ranks = [outcome.rank for outcome in found if outcome.way == way]
        first, five = (sum(rank is not None and rank <= most for rank in ranks) for most in (1, 5))
        print(f"  {way:34} first {first} of {len(ranks)}, among five {five} of {len(ranks)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/cairn-4m")
    parser.add_argument("--haystack", type=Path, nargs="+", required=True, help="text files")
    parser.add_argument("--tokens", type=int, nargs="+", default=[20_000])
    parser.add_argument("--facts", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write every outcome here")
    asked = parser.parse_args()
    found: list[Outcome] = []
    with ServerProcess(asked.model, threads=1) as server:
        for path in asked.haystack:
            for tokens in asked.tokens:
                text = path.read_text(encoding="utf-8")[: CHARACTERS * tokens]
                facts = draw_prompts(asked.facts, asked.seed + tokens)
                here = list(outcomes(server.client, path.name, text, facts, asked.seed))
                print(f"{path.name}, {here[0].tokens:,} tokens", flush=True)
                report(here)
                found += here
    print("all")
    report(found)
    write_json(asked.json, {"model": asked.model, "outcomes": [asdict(outcome) for outcome in found]})


if __name__ == "__main__":
    main()
