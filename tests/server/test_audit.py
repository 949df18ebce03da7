"""The audit over HTTP, as the official client asks for it; its metrics; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.conftest import Start
from tests.server.test_metrics import scrape
from tests.server.test_sessions import append, create

TEXT = "The grass is green. The sky is blue. Here we go. There and back again. " * 40
ASKED: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 20, "seed": 1}
USER: Any = [{"role": "user", "content": TEXT}]


@pytest.fixture(scope="module")
def little(start: Start, tiny_folder: Path) -> Iterator[httpx.Client]:
    """The random model, one of whose heads reads one block, audited at every tenth token."""
    settings = {"blocks_per_head": 1, "recent_blocks": 1, "block_size": 8, "audit_rate": 0.1, "model_name": "tiny"}
    with start(tiny_folder, **settings) as (client, _):
        yield client


@pytest.fixture
def client(little: httpx.Client) -> Iterator[openai.OpenAI]:
    """The official client."""
    with openai.OpenAI(base_url=f"{little.base_url}/v1", api_key="none", max_retries=0) as made:
        yield made


def whole(client: openai.OpenAI, retrieval: dict[str, Any], **more: Any) -> Any:
    """The `retrieval` field of a whole answer; None if there is none."""
    body = {"ignore_eos": True, "retrieval": retrieval} | more
    answer = client.chat.completions.create(messages=USER, extra_body=body, **ASKED)
    return (answer.model_extra or {}).get("retrieval")


def streamed(client: openai.OpenAI, retrieval: dict[str, Any]) -> Any:
    """The `retrieval` field of a stream's closing chunk."""
    body = {"ignore_eos": True, "retrieval": retrieval}
    chunks = list(client.chat.completions.create(messages=USER, extra_body=body, stream=True, **ASKED))
    [told] = [chunk for chunk in chunks if "retrieval" in (chunk.model_extra or {})]
    assert told.choices[0].finish_reason == "length"
    return (told.model_extra or {})["retrieval"]


@pytest.mark.parametrize("retrieval", [
    {"audit": True},
    {"min_mass": 0.1},
    {"audit": True, "blocks_per_head": 3},
    {"audit": True, "provenance": True},
])  # fmt: skip
def test_a_stream_tells_what_a_whole_answer_tells(client: openai.OpenAI, retrieval: dict[str, Any]) -> None:
    told = whole(client, retrieval)
    audit = told["audit"]
    assert audit.keys() == {"mean", "lowest", "samples", "blocks_per_head"}
    assert 0 < audit["lowest"] <= audit["mean"] <= 1
    assert audit["samples"] == 20
    assert ("passages" in told) == ("provenance" in retrieval)
    again = streamed(client, retrieval)
    assert again["audit"] == pytest.approx(audit, abs=1e-4)
    assert again.keys() == told.keys()


def test_more_blocks_cover_more_and_all_cover_all(client: openai.OpenAI) -> None:
    one, many = (whole(client, {"audit": True, "blocks_per_head": blocks})["audit"] for blocks in (1, 32))
    assert one["mean"] < many["mean"] < 1
    everything = whole(client, {"audit": True, "exact": True})["audit"]
    assert everything == {"mean": 1.0, "lowest": 1.0, "samples": 20, "blocks_per_head": None}


def test_nobody_who_did_not_ask_is_told(client: openai.OpenAI) -> None:
    assert whole(client, {}) is None
    assert "audit" not in whole(client, {"provenance": True})


def test_a_short_text_is_read_as_a_whole(cairn: httpx.Client) -> None:
    """And its last token is audited all the same, though no answer follows."""
    asked = {"prompt": "Once", "max_tokens": 0, "retrieval": {"audit": True}}
    audit = cairn.post("/v1/completions", json=asked).json()["retrieval"]["audit"]
    assert (audit["samples"], audit["mean"], audit["lowest"]) == (1, 1.0, 1.0)


def test_min_mass_raises_the_session_and_its_forks(little: httpx.Client) -> None:
    session = create(little)
    append(little, session, TEXT)

    def ask(session: str, **retrieval: Any) -> dict[str, Any]:
        body = {"prompt": "a", "session_id": session, "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        response = little.post("/v1/completions", json=body | {"retrieval": retrieval})
        told: dict[str, Any] = response.json()["retrieval"]["audit"]
        return told

    before = ask(session, audit=True)
    assert before["blocks_per_head"] == 1
    least = min(0.9, 3 * before["mean"])
    raised = ask(session, min_mass=least)["blocks_per_head"]
    assert raised in (4, 8, 16)
    later = ask(session, audit=True)
    assert later["blocks_per_head"] == raised
    assert later["mean"] > 0.9 * least
    fork = little.post(f"/v1/sessions/{session}/fork").json()["id"]
    assert ask(fork, audit=True)["blocks_per_head"] == raised
    assert ask(session, audit=True, blocks_per_head=2)["blocks_per_head"] == 2
    assert ask(create(little), audit=True)["blocks_per_head"] == 1


def test_the_metrics_count_samples(little: httpx.Client, client: openai.OpenAI) -> None:
    before = scrape(little)
    mean = whole(client, {"audit": True})["audit"]["mean"]
    after = scrape(little)

    def gained(name: str) -> float:
        return after[f"cairn_{name}"] - before[f"cairn_{name}"]

    count = gained("retrieval_attention_mass_count")
    assert count >= 20, "the answer's, and some of the prompt's"
    assert 0 < gained("retrieval_attention_mass_sum") <= count
    assert gained("retrieval_audit_seconds_total") > 0
    if count == 20:  # the prompt was found in the cache
        assert gained("retrieval_attention_mass_sum") == pytest.approx(20 * mean)


def test_the_servers_rate_alone_feeds_the_metric(little: httpx.Client) -> None:
    before = scrape(little)["cairn_retrieval_attention_mass_count"]
    tokens = list(range(100, 600))
    little.post("/v1/completions", json={"prompt": tokens, "max_tokens": 0}).raise_for_status()
    assert 20 < scrape(little)["cairn_retrieval_attention_mass_count"] - before < 90


@pytest.mark.parametrize(("fields", "named"), [
    ({"retrieval": {"min_mass": 0}}, "retrieval.min_mass"),
    ({"retrieval": {"min_mass": 1.5}}, "retrieval.min_mass"),
    ({"retrieval": {"min_mass": "0.9"}}, "retrieval.min_mass"),
    ({"retrieval": {"min_mass": True}}, "retrieval.min_mass"),
    ({"retrieval": {"audit": "yes"}}, "retrieval.audit"),
    ({"retrieval": {"audit": True}, "n": 2}, "retrieval.audit"),
    ({"retrieval": {"min_mass": 0.9}, "n": 2}, "retrieval.min_mass"),
    ({"retrieval": {"min_mass": 0.9, "top_p": 0.9}}, "retrieval.top_p"),
])  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_is_named(client: openai.OpenAI, fields: dict[str, Any], named: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(messages=USER, extra_body=fields, stream=stream, **ASKED)
    assert refused.value.param == named, json.dumps(refused.value.body)
