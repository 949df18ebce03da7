"""What one tenant has told the server, no other can reach: by ids, cached prefixes, passages, metrics or time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.app import create_app
from server.keys import hash_of
from server.openapi import operations
from server.settings import Settings
from tests.engine.durable import eventually
from tests.server.test_durability import served

FIRST, SECOND = ({"Authorization": f"Bearer {name}-key"} for name in ("first", "second"))
CANARY = "the canary sings at noon"
TEXT = f"It is a secret that {CANARY}. " * 20
BODIES: dict[str, Any] = {
    "append": {"text": "x"},
    "rewind": {"tokens": 0},
    "search": {"query": "x"},
    "chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "completions": {"prompt": "x"},
    "responses": {"input": "x"},
}
"""What a route needs to be asked properly, by the end of its path."""


@pytest.fixture(scope="module")
def shared(tiny_folder: Path) -> Iterator[httpx.Client]:
    """A server that two tenants use; the client has no key."""
    with served(tiny_folder, api_keys=("first-key", "second-key"), kv_bytes=16 << 20) as client:
        yield client


@pytest.fixture(scope="module")
def secret(shared: httpx.Client) -> str:
    """A session of the first tenant that holds the canary."""
    session = str(shared.post("/v1/sessions", headers=FIRST).json()["id"])
    told = shared.post(f"/v1/sessions/{session}/append", json={"text": TEXT}, headers=FIRST)
    assert told.json()["tokens"] > 100
    return session


@pytest.fixture(scope="module")
def answered(shared: httpx.Client) -> str:
    """A response of the first tenant."""
    asked = {"input": f"Tell me that {CANARY}.", "max_output_tokens": 4}
    return str(shared.post("/v1/responses", json=asked, headers=FIRST).json()["id"])


def routes_of(kind: str) -> list[tuple[str, str]]:
    """Every route that takes the id of a session, or of a response, in its path."""
    named = [name for name, _ in operations(create_app(Settings()).openapi())]
    return [(method, path) for method, path in (name.split() for name in named) if f"{{{kind}_id}}" in path]


def ask(client: httpx.Client, method: str, path: str, known: str) -> httpx.Response:
    """As the second tenant."""
    given = BODIES.get(path.rpartition("/")[2])
    body = {"json": given} if given else {"json": {}} if method == "patch" else {}
    if path.endswith("/documents"):
        body = {"files": {"file": ("x.txt", b"x")}}
    return client.request(method, path.format(session_id=known, response_id=known), headers=SECOND, **body)


@pytest.mark.parametrize(("method", "path"), routes_of("session"))
def test_a_foreign_session_is_as_good_as_none(shared: httpx.Client, secret: str, method: str, path: str) -> None:
    as_good_as_none(shared, secret, method, path)


@pytest.mark.parametrize(("method", "path"), routes_of("response"))
def test_a_foreign_response_is_as_good_as_none(shared: httpx.Client, answered: str, method: str, path: str) -> None:
    as_good_as_none(shared, answered, method, path)


def as_good_as_none(client: httpx.Client, foreign: str, method: str, path: str) -> None:
    """The same status, body and headers as for an id that never was."""
    unknown = "0" * len(foreign)
    mine, none = (ask(client, method, path, each) for each in (foreign, unknown))
    assert (mine.status_code, none.status_code) == (404, 404)
    assert mine.text.replace(foreign, unknown) == none.text
    assert mine.headers.keys() == none.headers.keys()


def test_a_foreign_response_is_not_continued(shared: httpx.Client, answered: str) -> None:
    unknown = "0" * len(answered)
    asked = [{"input": "x", "previous_response_id": each} for each in (answered, unknown)]
    mine, none = (shared.post("/v1/responses", json=body, headers=SECOND) for body in asked)
    assert (mine.status_code, none.status_code) == (400, 400)
    assert mine.text.replace(answered, unknown) == none.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("by_header", [False, True])
def test_a_foreign_session_is_not_continued(
    shared: httpx.Client, secret: str, path: str, stream: bool, by_header: bool
) -> None:
    body = {**BODIES[path.removeprefix("/v1/")], "stream": stream}
    headers = {**SECOND, "x-session-id": secret} if by_header else SECOND
    answer = shared.post(path, json=body if by_header else {**body, "session_id": secret}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_not_found")


@pytest.mark.parametrize(("method", "end"), [("get", ""), ("get", "/text"), ("patch", ""), ("post", "/append")])
def test_a_foreign_state_is_not_confirmed(shared: httpx.Client, secret: str, method: str, end: str) -> None:
    """Whoever has learnt a session's tag cannot ask whether it is still the same."""
    tag = shared.get(f"/v1/sessions/{secret}", headers=FIRST).headers["etag"]
    told = []
    for session in (secret, "0" * len(secret)):
        for known in (tag, '"another"', "*"):
            headers = {**SECOND, "If-Match": known, "If-None-Match": known}
            body = {"json": BODIES.get(end[1:], {})} if method != "get" else {}
            answer = shared.request(method, f"/v1/sessions/{session}{end}", headers=headers, **body)
            told.append((answer.status_code, answer.text.replace(session, "")))
    assert len(set(told)) == 1
    assert told[0][0] == 404


def test_a_foreign_session_that_is_busy_is_as_good_as_none(shared: httpx.Client) -> None:
    session = str(shared.post("/v1/sessions", headers=FIRST).json()["id"])
    asked = {"prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True, "session_id": session}
    with shared.stream("POST", "/v1/completions", json=asked, headers=FIRST) as running:
        lines = running.iter_lines()  # held: who lets go of it lets go of the stream
        next(lines)
        for method, path in (("get", ""), ("post", "/append"), ("post", "/rewind"), ("delete", "")):
            as_good_as_none(shared, session, method, "/v1/sessions/{session_id}" + path)
        assert busy(shared, session), "it was too quick to be tested"
    eventually(lambda: not busy(shared, session))
    shared.delete(f"/v1/sessions/{session}", headers=FIRST)


def busy(client: httpx.Client, session: str) -> bool:
    return bool(client.get(f"/v1/sessions/{session}", headers=FIRST).json()["busy"])


def test_no_page_begins_behind_what_is_foreign(shared: httpx.Client, secret: str, answered: str) -> None:
    mine = shared.post("/v1/responses", json={"input": "x", "max_output_tokens": 1}, headers=SECOND).json()["id"]
    items = shared.get(f"/v1/responses/{answered}/input_items", headers=FIRST).json()["data"]
    for path, foreign in (("/v1/sessions", secret), (f"/v1/responses/{mine}/input_items", items[0]["id"])):
        unknown = "0" * len(foreign)
        told = [shared.get(path, params={"after": each}, headers=SECOND) for each in (foreign, unknown)]
        assert [answer.status_code for answer in told] == [400, 400]
        assert told[0].text.replace(foreign, unknown) == told[1].text
    shared.delete(f"/v1/responses/{mine}", headers=SECOND)


def test_a_foreign_session_takes_no_other_time(shared: httpx.Client, secret: str) -> None:
    best = dict.fromkeys((secret, "0" * len(secret)), 1.0)
    for _ in range(100):
        for session in best:
            begun = time.perf_counter()
            shared.get(f"/v1/sessions/{session}", headers=SECOND)
            best[session] = min(best[session], time.perf_counter() - begun)
    assert max(best.values()) < 1.5 * min(best.values())


def test_sessions_are_listed_to_their_tenant_alone(shared: httpx.Client, secret: str) -> None:
    assert secret in shared.get("/v1/sessions", headers=FIRST).text
    assert shared.get("/v1/sessions", headers=SECOND).json()["data"] == []


def computed(client: httpx.Client) -> float:
    """Prompt tokens that were computed so far."""
    return metric(client, "cairn_prompt_tokens_total")


def metric(client: httpx.Client, name: str) -> float:
    page = client.get("/metrics", headers=FIRST).text
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return next(sample.value for sample in samples if sample.name == name)


def test_a_guessed_prefix_is_not_confirmed(shared: httpx.Client, secret: str) -> None:
    """Neither by what is said to be cached nor by what is computed, which is what takes time."""
    usages, costs = [], []
    for tenant in (SECOND, FIRST, SECOND):
        before = computed(shared)
        answer = shared.post("/v1/completions", json={"prompt": TEXT, "max_tokens": 1}, headers=tenant).json()
        usages.append(answer["usage"])
        costs.append(computed(shared) - before)
    prompt = usages[0]["prompt_tokens"]
    assert [usage["prompt_tokens_details"]["cached_tokens"] > 0 for usage in usages] == [False, True, True]
    assert costs[0] == prompt, "all of it is computed, though another tenant's session begins like it"
    assert costs[1] < prompt / 2
    assert costs[2] < prompt / 2


def test_memory_does_not_tell_that_another_holds_the_same_text(shared: httpx.Client, secret: str) -> None:
    """Equal text is kept once for a tenant, and once more for each other."""
    costs = []
    text = "What one tenant has read, and the other one guesses. " * 20
    for tenant in (FIRST, SECOND, SECOND):
        before = metric(shared, "cairn_kv_tier_blocks")
        session = shared.post("/v1/sessions", headers=tenant).json()["id"]
        shared.post(f"/v1/sessions/{session}/append", json={"text": text}, headers=tenant)
        costs.append(metric(shared, "cairn_kv_tier_blocks") - before)
    assert costs[0] == costs[1] > costs[2]


def test_passages_are_the_askers_own(shared: httpx.Client, secret: str) -> None:
    mine = "My own words about the weather of this spring. " * 30
    asked = {"prompt": mine, "max_tokens": 4, "retrieval": {"provenance": True, "exact": True, "passages": 100}}
    passages = shared.post("/v1/completions", json=asked, headers=SECOND).json()["retrieval"]["passages"]
    assert passages
    for passage in passages:
        assert passage["text"].strip() in mine
        assert "canary" not in passage["text"]


def test_metrics_name_nobody(shared: httpx.Client, secret: str) -> None:
    page = shared.get("/metrics", headers=SECOND).text
    tenants = [hash_of(name) for name in (b"first-key", b"second-key")]
    for word in ("canary", secret, *tenants, *(tenant[:12] for tenant in tenants)):
        assert word not in page
