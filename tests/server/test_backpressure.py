"""A full queue: what comes beyond it is refused at once, and whoever was accepted gets the whole answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

Start = Callable[..., AbstractContextManager[tuple[httpx.Client, Any]]]
Events = Callable[[httpx.Response], list[dict[str, Any]]]

ASKED = {"prompt": "x", "max_tokens": 300, "ignore_eos": True, "stream": True}
RUNNING, WAITING = 2, 3
JSON = {"content-type": "application/json"}


def requests(client: httpx.Client) -> tuple[float, float]:
    """How many run and how many wait."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    values = {sample.name: sample.value for family in families for sample in family.samples}
    return values["cairn_num_requests_running"], values["cairn_num_requests_waiting"]


def wait_for(client: httpx.Client, running: int, waiting: int) -> None:
    deadline = time.monotonic() + 20
    while requests(client) != (running, waiting):
        assert time.monotonic() < deadline, f"{requests(client)} run and wait, not {(running, waiting)}"
        time.sleep(0.01)


def test_beyond_the_queue_requests_are_refused_and_the_others_end(
    start: Start, tiny_folder: Path, events: Events
) -> None:
    with (
        start(tiny_folder, max_running=RUNNING, max_waiting=WAITING) as (client, _),
        ThreadPoolExecutor(RUNNING + WAITING) as pool,
    ):

        def ask() -> httpx.Response:
            return client.post("/v1/completions", json=ASKED)

        accepted = [pool.submit(ask) for _ in range(RUNNING)]
        wait_for(client, RUNNING, 0)
        accepted += [pool.submit(ask) for _ in range(WAITING)]
        wait_for(client, RUNNING, WAITING)
        refused = [ask() for _ in range(20)]
        assert requests(client) == (RUNNING, WAITING), "the refused came while the queue was full"
        for answer in refused:
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
            assert int(answer.headers["retry-after"]) > 0
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses"):  # not even looked at
            assert client.post(path, content=b"{").status_code == 429
        assert client.post("/v1/tokenize", json={"prompt": "x"}).status_code != 429
        for each in accepted:
            told = events(each.result(timeout=60))  # ends in [DONE]
            assert told[-1]["choices"][0]["finish_reason"] == "length"
        assert ask().status_code == 200, "there is room again"
        assert client.post("/v1/completions", content=b"{", headers=JSON).status_code == 400
