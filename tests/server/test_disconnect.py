"""A client that leaves ends its request, streamed or not; its session keeps what was read."""

from __future__ import annotations

import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

LONG = {"prompt": "x", "max_tokens": 12_000, "ignore_eos": True}


def busy(client: httpx.Client) -> tuple[float, float]:
    """Running requests, and tokens generated so far."""
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }
    return values["cairn_num_requests_running"], values["cairn_generation_tokens_total"]


def wait_for(client: httpx.Client, running: int) -> None:
    deadline = time.monotonic() + 5
    while busy(client)[0] != running:
        assert time.monotonic() < deadline, f"{busy(client)[0]} requests run, not {running}"
        time.sleep(0.02)


def test_leaving_a_stream_ends_it(tiny: httpx.Client) -> None:
    with tiny.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as stream:
        lines = stream.iter_lines()
        next(lines)
        wait_for(tiny, 1)
    wait_for(tiny, 0)
    assert busy(tiny)[1] == busy(tiny)[1]


def test_leaving_before_the_answer_ends_it(tiny: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        tiny.post("/v1/completions", json=LONG, timeout=0.5)
    wait_for(tiny, 0)


def test_leaving_frees_the_session_and_keeps_its_text(tiny: httpx.Client) -> None:
    session = tiny.post("/v1/sessions").json()["id"]
    tiny.post(f"/v1/sessions/{session}/append", json={"text": "The grass is green. " * 10})
    before = tiny.get(f"/v1/sessions/{session}").json()["tokens"]
    asked = {**LONG, "session_id": session, "stream": True}
    with tiny.stream("POST", "/v1/completions", json=asked) as stream:
        lines = stream.iter_lines()
        for _ in range(40):
            next(lines)
    wait_for(tiny, 0)
    told = tiny.get(f"/v1/sessions/{session}").json()
    assert not told["busy"]
    assert told["tokens"] > before
    again = {"prompt": "y", "session_id": session, "max_tokens": 1}
    usage = tiny.post("/v1/completions", json=again).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= told["tokens"] - 1


def test_leaving_a_long_append_ends_it(tiny: httpx.Client) -> None:
    session = tiny.post("/v1/sessions").json()["id"]
    asked = {"text": "word " * 12_000, "stream": True}
    with tiny.stream("POST", f"/v1/sessions/{session}/append", json=asked) as stream:
        lines = stream.iter_lines()
        next(lines)
    wait_for(tiny, 0)
    assert not tiny.get(f"/v1/sessions/{session}").json()["busy"]
