"""Every name, scraped over HTTP and read with Prometheus' own parser after real requests."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

HISTOGRAMS = {
    "time_to_first_token_seconds",
    "time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "retrieval_seconds",
    "retrieval_blocks_selected",
    "retrieval_attention_mass",
}
COUNTERS = {
    "prompt_tokens",
    "generation_tokens",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "request_success",
    "retrieval_block_hits",
    "retrieval_audit_seconds",
    "requests_refused",
}
GAUGES = {
    "num_requests_running",
    "num_requests_waiting",
    "sessions",
    "kv_tier_usage_bytes",
    "kv_tier_capacity_bytes",
    "kv_tier_blocks",
}
LABELS = {"le", "finished_reason", "state", "tier", "phase", "reason", "src", "dst"}


def scrape(client: httpx.Client) -> dict[str, float]:
    """Values by name and labels; buckets left out."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    values = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            assert sample.labels.keys() <= LABELS
            if not sample.name.endswith("_bucket"):
                values[sample.name + "".join(f"[{value}]" for value in sample.labels.values())] = sample.value
    return values


def read(client: httpx.Client, **more: object) -> dict[str, int]:
    asked = {"prompt": "The grass is green. " * 60, "max_tokens": 6, "temperature": 0, "ignore_eos": True, **more}
    usage = client.post("/v1/completions", json=asked).json()["usage"]
    return {**usage, "cached": usage["prompt_tokens_details"]["cached_tokens"]}


def test_every_name_is_there(cairn: httpx.Client) -> None:
    read(cairn)
    families = {family.name: family.type for family in text_string_to_metric_families(cairn.get("/metrics").text)}
    expected = dict.fromkeys(HISTOGRAMS, "histogram")
    expected |= dict.fromkeys(COUNTERS, "counter") | dict.fromkeys(GAUGES, "gauge")
    assert {f"cairn_{name}": kind for name, kind in expected.items()}.items() <= families.items()


def test_the_numbers_are_those_of_the_requests(cairn: httpx.Client) -> None:
    before = scrape(cairn)
    usages = [read(cairn), read(cairn)]
    after = scrape(cairn)

    def gained(name: str) -> float:
        return after[f"cairn_{name}"] - before.get(f"cairn_{name}", 0)

    assert gained("generation_tokens_total") == 12
    assert gained("prefix_cache_queries_total") == sum(usage["prompt_tokens"] for usage in usages)
    assert gained("prefix_cache_hits_total") == sum(usage["cached"] for usage in usages) > 0
    assert gained("prompt_tokens_total") == sum(usage["prompt_tokens"] - usage["cached"] for usage in usages)
    assert gained("request_success_total[length]") == 2
    assert gained("time_to_first_token_seconds_count") == 2
    assert gained("e2e_request_latency_seconds_count") == 2
    assert gained("time_per_output_token_seconds_count") == 10
    assert gained("retrieval_blocks_selected_count") > 0
    assert gained("retrieval_block_hits_total[device]") > 0
    assert gained("retrieval_seconds_sum[decode]") > 0


def test_a_stop_string_counts_as_stop(cairn: httpx.Client) -> None:
    text = cairn.post("/v1/completions", json={"prompt": "Once", "temperature": 0}).json()["choices"][0]["text"]
    before = scrape(cairn)
    cairn.post("/v1/completions", json={"prompt": "Once", "temperature": 0, "stop": text[:5]})
    after = scrape(cairn)
    stop, cancelled = "cairn_request_success_total[stop]", "cairn_request_success_total[cancelled]"
    assert after[stop] == before.get(stop, 0) + 1
    assert after.get(cancelled, 0) == before.get(cancelled, 0)


def test_gauges_follow_sessions_and_memory(cairn: httpx.Client) -> None:
    before = scrape(cairn)
    session = cairn.post("/v1/sessions").json()["id"]
    cairn.post(f"/v1/sessions/{session}/append", json={"text": "The sky is blue, said nobody else. " * 30})
    after = scrape(cairn)
    assert after["cairn_sessions[idle]"] == before["cairn_sessions[idle]"] + 1
    assert after["cairn_kv_tier_blocks[device]"] > before["cairn_kv_tier_blocks[device]"]
    assert after["cairn_kv_tier_usage_bytes[device]"] < after["cairn_kv_tier_capacity_bytes[device]"]
    assert after["cairn_num_requests_running"] == after["cairn_num_requests_waiting"] == 0


@pytest.mark.parametrize("stream", [True, False])
def test_first_token_buckets_reach_far(cairn: httpx.Client, stream: bool) -> None:
    cairn.post("/v1/completions", json={"prompt": "Once", "max_tokens": 1, "stream": stream})
    assert 'cairn_time_to_first_token_seconds_bucket{le="2560.0"}' in cairn.get("/metrics").text
