"""Passages in words: a planted fact is found first, and offsets slice the session's own text to the character."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from server.pieces import Pieces
from server.provenance import excerpts, located
from tests.server.conftest import Start
from tests.server.test_sessions import append, create, question

Events = Callable[[httpx.Response], list[dict[str, Any]]]
CAIRN = Path(__file__).parents[2] / "models" / "cairn-4m" / "tokenizer.json"
FILLER = (
    "Die Straße war naß, and the café's owner wrote “日本語” on the wall 🙂. Then it rained for a week; <|end|> "
    "nobody came, and the garden grew. "
)
FACT = "The pass key for Lisbon is 71432."
RETRIEVAL = {"provenance": True, "passages": 6}


def planted(before: int, after: int) -> str:
    """A document with a fact in it."""
    return f"{FILLER * before}{FACT} Remember it. {FILLER * after}"


def text_of(client: httpx.Client, session: str, **edges: int) -> dict[str, Any]:
    response = client.get(f"/v1/sessions/{session}/text", params=edges)
    assert response.status_code == 200, response.text
    assert response.headers["x-session-id"] == session
    told: dict[str, Any] = response.json()
    return told


def same_text(client: httpx.Client, session: str, passages: list[dict[str, Any]]) -> None:
    """What every passage says is what its offsets and its tokens slice."""
    whole = text_of(client, session)["text"]
    for passage in passages:
        assert passage["text"] == whole[passage["start_char"] : passage["end_char"]]
        edges = {name: passage[name] for name in ("start_token", "end_token")}
        part = text_of(client, session, **edges)
        assert {**part, "share": passage["share"]} == {"id": session, "object": "session.text", **passage}


@pytest.mark.parametrize(("before", "after"), [(5, 35), (20, 20), (35, 5)])
def test_a_planted_fact_is_found_first(cairn: httpx.Client, before: int, after: int) -> None:
    session, document = create(cairn), planted(before, after)
    append(cairn, session, document)
    asked = question(session, max_tokens=24, retrieval=RETRIEVAL)
    answer = cairn.post("/v1/chat/completions", json=asked).json()
    assert "71432" in answer["choices"][0]["message"]["content"]
    first, *others = answer["retrieval"]["passages"]
    assert FACT in first["text"]
    assert first["text"] == document[first["start_char"] : first["end_char"]]
    assert first["share"] > 1.5 * others[0]["share"]
    assert sum(answer["retrieval"][name] for name in ("fetched", "sinks", "local", "estimated")) == pytest.approx(1.0)
    same_text(cairn, session, answer["retrieval"]["passages"])


def test_later_turns_slice_the_sessions_text_with_its_control_tokens(cairn: httpx.Client, events: Events) -> None:
    """By then it holds messages and answers; their control tokens are spelled out, the document's is literal."""
    session = create(cairn)
    append(cairn, session, planted(3, 3))
    for content in ("Wie heißt die Straße? 日本語 🙂" * 12, "And then?"):
        asked = question(session, content, retrieval={"provenance": True, "passages": 100}, stream=True)
        told = events(cairn.post("/v1/chat/completions", json=asked))[-1]["retrieval"]
        same_text(cairn, session, told["passages"])
    whole = text_of(cairn, session)
    assert whole["text"].startswith(planted(3, 3) + "<|user|>Wie heißt")
    assert whole["text"].count("<|assistant|>") == 2
    assert "<|user|>" in "".join(passage["text"] for passage in told["passages"])
    tokens = cairn.get(f"/v1/sessions/{session}").json()["tokens"]
    assert (whole["start_token"], whole["end_token"], whole["start_char"]) == (0, tokens, 0)
    assert whole["end_char"] == len(whole["text"])


def test_without_a_session_they_slice_the_prompt(cairn: httpx.Client) -> None:
    document = planted(5, 5)
    asked = {"prompt": document, "max_tokens": 4, "temperature": 0, "retrieval": RETRIEVAL}
    passages = cairn.post("/v1/completions", json=asked).json()["retrieval"]["passages"]
    assert passages
    for passage in passages:
        assert passage["text"] == document[passage["start_char"] : passage["end_char"]]


# -- the session's text --------------------------------------------------------------------------------------


def test_parts_of_a_text_are_the_whole(cairn: httpx.Client) -> None:
    session = create(cairn)
    assert text_of(cairn, session)["text"] == ""
    tokens = append(cairn, session, FILLER)["tokens"]
    edges = [0, *range(1, tokens, 7), tokens]
    parts = [text_of(cairn, session, start_token=start, end_token=end) for start, end in pairwise(edges)]
    assert "".join(part["text"] for part in parts) == FILLER
    assert all(part["text"] == FILLER[part["start_char"] : part["end_char"]] for part in parts)
    assert text_of(cairn, session, start_token=7)["text"] == FILLER[text_of(cairn, session, end_token=7)["end_char"] :]


@pytest.mark.parametrize(("edges", "named"), [
    ({"start_token": -1}, "start_token"),
    ({"end_token": 100_000}, "end_token"),
    ({"end_token": "x"}, "end_token"),
    ({"start_token": 9, "end_token": 8}, "start_token"),
    ({"start_token": 100_000}, "start_token"),
])  # fmt: skip
def test_edges_without_sense_are_named(cairn: httpx.Client, edges: dict[str, Any], named: str) -> None:
    session = create(cairn)
    append(cairn, session, FILLER)
    refused = cairn.get(f"/v1/sessions/{session}/text", params=edges)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, named)


def test_nobody_reads_anothers_text(start: Start, tiny_folder: Path) -> None:
    with start(tiny_folder, api_keys="first-key,second-key") as (client, _):
        mine, other = ({"Authorization": f"Bearer {key}"} for key in ("first-key", "second-key"))
        path = f"/v1/sessions/{client.post('/v1/sessions', headers=mine).json()['id']}/text"
        assert client.get(path, headers=mine).status_code == 200
        assert client.get(path, headers=other).status_code == 404
        assert client.get(path).status_code == 401


# -- characters ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces() -> Pieces:
    """The shipped vocabulary."""
    return Pieces(Tokenizer.from_file(str(CAIRN)))


def test_no_character_is_cut(pieces: Pieces) -> None:
    tokens = Tokenizer.from_file(str(CAIRN)).encode("日本語 🙂🙃 naïve “x”").ids
    whole = pieces.text(tokens)
    cuts = [excerpts(tokens, [(0, edge), (edge, len(tokens))], pieces) for edge in range(len(tokens) + 1)]
    assert all(first["text"] + second["text"] == whole for first, second in cuts)
    assert "\ufffd" not in "".join(first["text"] for first, _ in cuts)
    assert len({first["end_char"] for first, _ in cuts}) <= len(whole) + 1 < len(cuts), "some edge lies in a character"


def test_offsets_hold_in_what_is_no_text(pieces: Pieces) -> None:
    """A model may generate any bytes; each wrong one is one U+FFFD, wherever an edge lies."""
    generator = random.Random(5)
    single = [token for token in range(4096) if len(pieces.spelled(token)) == 1]
    tokens = [generator.choice(single) for _ in range(500)]
    whole, (text, offsets) = pieces.text(tokens), located(tokens, range(501), pieces)
    assert text == whole
    assert whole.count("\ufffd") > 50
    assert offsets[500] == len(whole)
    for start in range(0, 480, 7):
        [told] = excerpts(tokens, [(start, start + 20)], pieces)
        assert told["text"] == whole[told["start_char"] : told["end_char"]]
