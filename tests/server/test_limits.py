"""A tenant's limits: what is charged is what was used, what is beyond a limit is refused with when to come back."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine import Engine, EngineConfig, Generation, InvalidParameter, SamplingParams, Token, load_engine
from server.async_engine import AsyncEngine
from server.errors import ApiError
from server.keys import Limits, hash_of
from server.limits import Accounts, Bucket
from server.metrics import Metrics
from tests.server.test_durability import served

LIMITS: dict[str, dict[str, int]] = {
    "requests": {"requests_per_minute": 5},
    "tokens": {"tokens_per_minute": 1000},
    "parallel": {"concurrent_requests": 1},
    "sessions": {"sessions": 2, "session_tokens": 50},
    "free": {"tokens_per_minute": 0, "session_tokens": 0},
    "watched": {"tokens_per_minute": 500},
    "default": {},
}


class Clock:
    """Time that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


# -- counting ------------------------------------------------------------------------------------------------


def test_a_bucket_refills_steadily() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    assert [bucket.take(20), bucket.take(40)] == [0.0, 0.0]
    assert bucket.take(30) == pytest.approx(30)
    clock.now += 29.5
    assert bucket.take(30) == pytest.approx(0.5)
    clock.now += 0.5
    assert bucket.take(30) == 0.0
    assert bucket.remaining == 0.0
    assert bucket.seconds_to_full == pytest.approx(60)
    bucket.give_back(100)
    assert bucket.remaining == 60, "never more than the limit"
    clock.now += 1000
    bucket.take(45)
    bucket.change(40)
    assert bucket.remaining == 0, "what has been used stays used"


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Iterator[Engine]:
    made = load_engine(str(tiny_folder), EngineConfig(kv_bytes=8 << 20, step_tokens=64, max_running=2))
    made.start()
    yield made
    made.stop()


def generation(prompt: int, tokens: int, n: int = 1, name: str = "a", ends: tuple[int, ...] = ()) -> Generation:
    sampling = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, stop_token_ids=ends)
    return Generation(name, tuple(range(10, 10 + prompt)), sampling, tenant="t", n=n)


def charged(engine: Engine, *generations: Generation, stop_after: int | None = None, leave: bool = False) -> int:
    """What is gone from 10,000 tokens a minute when all has ended, on a clock that stands still."""
    accounts = Accounts(lambda tenant: Limits(tokens_per_minute=10_000), Clock())

    async def main() -> None:
        read = 0
        async with AsyncEngine(engine, Metrics(), 8192, accounts).open(generations) as stream:
            reserved = sum(len(each.tokens) + each.n * each.sampling.max_tokens for each in generations)
            standing = accounts.of("t").standing("tokens_per_minute")
            assert standing is not None
            assert standing.remaining == 10_000 - reserved or reserved < 900, (
                "reserved as a whole; short ones may have ended"
            )
            while not stream.ended and not (leave and read > 3):
                arrived = await stream.next()
                read += arrived is not None and isinstance(arrived[1], Token)
                if read == stop_after:
                    await asyncio.sleep(0.1)  # the engine is ahead
                    stream.cut(0, 0)
        while engine.stats().running or engine.stats().waiting:
            await asyncio.sleep(0.01)

    asyncio.run(main())
    standing = accounts.of("t").standing("tokens_per_minute")
    assert standing is not None
    totals = accounts.of("t").totals()
    assert totals.prompt_tokens + totals.completion_tokens == 10_000 - standing.remaining
    return 10_000 - standing.remaining


def test_what_is_charged_is_what_was_used(engine: Engine) -> None:
    assert charged(engine, generation(20, 7)) == 27
    assert charged(engine, generation(20, 7, n=2)) == 34, "a prompt counts once"
    assert charged(engine, generation(20, 7), generation(5, 3, name="b")) == 35
    assert charged(engine, generation(20, 0)) == 20
    everything = tuple(range(engine.description.vocab_size))
    assert charged(engine, generation(20, 7, ends=everything)) == 21, "what was reserved and not used is given back"


def test_who_leaves_pays_for_what_was_computed(engine: Engine) -> None:
    assert 20 < charged(engine, generation(20, 900), leave=True) < 920


def test_what_follows_a_stop_string_is_free(engine: Engine) -> None:
    read = 5
    assert charged(engine, generation(20, 900), stop_after=read) == 20 + read


def test_what_is_refused_costs_nothing(engine: Engine) -> None:
    accounts = Accounts(lambda tenant: Limits(tokens_per_minute=10_000), Clock())

    async def main() -> None:
        wrong = Generation("b", (999_999,), SamplingParams(max_tokens=5), tenant="t")
        with pytest.raises(InvalidParameter):
            async with AsyncEngine(engine, Metrics(), 8192, accounts).open([wrong]):
                raise AssertionError("it is refused")

    asyncio.run(main())
    standing = accounts.of("t").standing("tokens_per_minute")
    assert standing is not None
    assert standing.remaining == 10_000


def test_requests_at_once() -> None:
    account = Accounts(lambda tenant: Limits(concurrent_requests=1)).of("t")
    account.enter()
    with pytest.raises(ApiError) as refused:
        account.enter()
    assert refused.value.status == 429
    account.leave()
    account.enter()


# -- over HTTP -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A tenant for each limit, whose key is its name; all others have 10 sessions and 200 tokens a minute."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = [{"sha256": hash_of(name.encode()), "tenant": name} for name in LIMITS]
    watcher = {"sha256": hash_of(b"watcher"), "role": "metrics"}
    tenants = {name: {"limits": limits} for name, limits in LIMITS.items() if limits}
    file.write_text(json.dumps({"tenants": tenants, "keys": [*keys, watcher]}))
    defaults = {"tenant_sessions": 10, "tenant_tokens_per_minute": 200, "tenant_tokens": 100}
    with served(tiny_folder, keys_file=str(file), **defaults) as client:
        yield client


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code
    if status == 429:
        assert error["type"] == "rate_limit_error"
        assert int(response.headers["retry-after"]) >= 1
    return error


def complete(client: httpx.Client, tenant: str, prompt: str = "Hello", **fields: Any) -> httpx.Response:
    asked = {"prompt": prompt, "max_tokens": 2, "ignore_eos": True, **fields}
    return client.post("/v1/completions", json=asked, headers={"Authorization": f"Bearer {tenant}"})


def test_requests_per_minute(limited: httpx.Client) -> None:
    responses = [complete(limited, "requests") for _ in range(6)]
    assert [response.status_code for response in responses] == [200] * 5 + [429]
    assert [response.headers["x-ratelimit-remaining-requests"] for response in responses] == list("432100")
    assert {response.headers["x-ratelimit-limit-requests"] for response in responses} == {"5"}
    error = refused(responses[-1], 429, "rate_limit_exceeded")
    assert (error["limited"], error["limit"]) == ("requests_per_minute", 5)
    assert 1 <= int(responses[-1].headers["retry-after"]) <= 12
    assert complete(limited, "default").status_code == 200, "others have limits of their own"
    assert limited.get("/health").status_code == 200


def test_tokens_per_minute(limited: httpx.Client) -> None:
    begun = time.monotonic()
    first = complete(limited, "tokens", max_tokens=200)
    refilled = 1 + (time.monotonic() - begun) * 1000 / 60
    used = first.json()["usage"]["total_tokens"]
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    remaining = int(first.headers["x-ratelimit-remaining-tokens"])
    assert 1000 - used <= remaining <= 1000 - used + refilled, "settled"
    answer = complete(limited, "tokens", max_tokens=990)
    error = refused(answer, 429, "rate_limit_exceeded")
    assert (error["limited"], error["limit"]) == ("tokens_per_minute", 1000)
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    error = refused(complete(limited, "tokens", max_tokens=1000), 413, "request_too_large")
    assert error["limit"] == 1000 < error["wanted"]
    streamed = complete(limited, "tokens", max_tokens=990, stream=True)
    refused(streamed, 429, "rate_limit_exceeded")
    assert complete(limited, "tokens").status_code == 200, "what was refused was not charged"
    assert complete(limited, "free", max_tokens=300).status_code == 200, "0 sets no limit"
    assert "x-ratelimit-limit-tokens" not in complete(limited, "free").headers


def test_headers_do_not_tell_of_others(limited: httpx.Client) -> None:
    """What another tenant uses changes no header of one's own, but for what refills meanwhile."""
    mine = complete(limited, "watched", max_tokens=0)
    complete(limited, "default", max_tokens=100)
    again = complete(limited, "watched", max_tokens=0)
    names = {name for name in mine.headers if name.startswith("x-ratelimit")}
    assert names == {name for name in again.headers if name.startswith("x-ratelimit")} != set()
    used = mine.json()["usage"]["total_tokens"]
    left = [int(answer.headers["x-ratelimit-remaining-tokens"]) for answer in (mine, again)]
    assert left[0] - left[1] <= used


def test_appended_tokens_count_and_what_a_session_holds_does_not(limited: httpx.Client) -> None:
    key = {"Authorization": "Bearer default"}
    session = limited.post("/v1/sessions", headers=key).json()["id"]
    before = int(limited.get("/v1/sessions", headers=key).headers["x-ratelimit-remaining-tokens"])
    body = {"text": "word " * 40}
    told = limited.post(f"/v1/sessions/{session}/append", json=body, headers=key)
    appended = told.json()["appended_tokens"]
    after = int(told.headers["x-ratelimit-remaining-tokens"])
    assert before - appended <= after <= before - appended + 5
    assert complete(limited, "default", session_id=session).status_code == 200
    left = int(limited.get("/v1/sessions", headers=key).headers["x-ratelimit-remaining-tokens"])
    assert after - left < 20, "the question alone"


def test_requests_at_once_over_http(limited: httpx.Client) -> None:
    asked = {"prompt": "x", "max_tokens": 150, "ignore_eos": True, "stream": True}
    key = {"Authorization": "Bearer parallel"}
    with limited.stream("POST", "/v1/completions", json=asked, headers=key) as running:
        lines = running.iter_lines()
        next(lines)
        error = refused(limited.get("/v1/models", headers=key), 429, "rate_limit_exceeded")
        assert error["limited"] == "concurrent_requests"
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert limited.get("/v1/models", headers=key).status_code == 200


def test_sessions_and_what_they_hold(limited: httpx.Client) -> None:
    key = {"Authorization": "Bearer sessions"}
    first, second = (limited.post("/v1/sessions", headers=key).json()["id"] for _ in range(2))
    refused(limited.post("/v1/sessions", headers=key), 429, "quota_exceeded")
    refused(limited.post(f"/v1/sessions/{first}/fork", headers=key), 429, "quota_exceeded")

    def append(session: str, words: int) -> httpx.Response:
        return limited.post(f"/v1/sessions/{session}/append", json={"text": "word " * words}, headers=key)

    error = refused(append(first, 60), 413, "session_too_long")
    assert error["limit"] == 50 < error["wanted"]
    assert append(first, 40).status_code == 200
    refused(append(second, 40), 429, "quota_exceeded")
    limited.delete(f"/v1/sessions/{first}", headers=key)
    assert append(second, 40).status_code == 200
    assert limited.post("/v1/sessions", headers=key).status_code == 201


def test_the_official_client_understands_a_refusal(limited: httpx.Client) -> None:
    with openai.OpenAI(base_url=f"{limited.base_url}/v1", api_key="tokens", max_retries=0) as client:
        ask = functools.partial(client.completions.create, model="tiny", prompt="x", extra_body={"ignore_eos": True})
        ask(max_tokens=50)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(max_tokens=990)
        assert caught.value.code == "rate_limit_exceeded"


def test_refusals_are_counted_without_names(limited: httpx.Client) -> None:
    complete(limited, "nobody")
    page = limited.get("/metrics", headers={"Authorization": "Bearer watcher"}).text
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    counted = {s.labels["reason"]: s.value for s in samples if s.name == "cairn_requests_refused_total"}
    assert {"tokens_per_minute", "requests_per_minute", "request_too_large", "invalid_api_key"} <= counted.keys()
    assert not any(name in sample.labels.values() for sample in samples for name in LIMITS.keys() - {"sessions"})
