"""Sessions that outlive the server, whose folder it is, who may see them, and how long they are kept."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from server.cli import main
from server.service import Service, State
from server.serving import DrainingServer, server_config
from server.settings import Settings
from tests.engine.durable import eventually
from tests.server.conftest import Start
from tests.server.test_metrics import scrape
from tests.server.test_sessions import append, chat, count, create, question

TEXT = "The grass is green. The sky is blue. Here we go. There and back again. " * 12
MORE = "What was green, and what was blue?"
READY_WITHIN = 90.0  # where kernels are compiled first
BLOCK = 16
MIB = 1 << 20


@contextmanager
def served(model: Path, **settings: Any) -> Iterator[httpx.Client]:
    """A server on a thread of this process, which starts in no time; it ends as if by Ctrl-C."""
    chosen = Settings(model=str(model), port=0, **settings)
    service = Service(chosen)
    server = DrainingServer(server_config(chosen, service), service)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started and service.state is not State.LOADING, READY_WITHIN)
        assert service.state is State.READY, service.failure
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client
    finally:
        server.handle_exit(signal.SIGINT, None)
        thread.join()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The last line on stderr of a server that ends with exit code 2; before it, at most that it is loading."""
    assert main(["serve", "--port", "0", *map(str, arguments)]) == 2
    *before, line = capsys.readouterr().err.splitlines()
    assert all(each.startswith("Cairn on ") for each in before)
    assert len(before) <= 1
    assert line.startswith("cairn: ")
    return line


def text_of(client: httpx.Client, session: str) -> str:
    return str(client.get(f"/v1/sessions/{session}/text").json()["text"])


def names(client: httpx.Client) -> list[str]:
    return [each["id"] for each in client.get("/v1/sessions", params={"order": "asc"}).json()["data"]]


def patch(client: httpx.Client, session: str, **changes: Any) -> dict[str, Any]:
    response = client.patch(f"/v1/sessions/{session}", json=changes)
    assert response.status_code == 200, response.text
    assert response.headers["x-session-id"] == session
    told: dict[str, Any] = response.json()
    return told


def test_a_restart_changes_nothing(start: Start, tiny_folder: Path, tmp_path: Path) -> None:
    """Two keys' sessions, on a server that is stopped by SIGTERM, beside one that never stops."""
    kept = {"disk_kv_path": tmp_path / "store", "disk_kv_bytes": "256MB", "kv_bytes": "64MiB"}
    keys = {"api_keys": "first-key,second-key"}
    second = {"authorization": "Bearer second-key"}
    with served(tiny_folder) as never:
        steady = create(never)
        append(never, steady, TEXT)
        first_answer = chat(never, steady)["choices"]
        with start(tiny_folder, **kept, **keys) as (client, process):
            client.headers["authorization"] = "Bearer first-key"
            capacity = {tier: scrape(client)[f"cairn_kv_tier_capacity_bytes[{tier}]"] for tier in ("device", "disk")}
            assert capacity == {"device": 64 * MIB, "disk": 256 * 10**6}
            session = create(client)
            append(client, session, TEXT)
            assert chat(client, session)["choices"] == first_answer
            fork = client.post(f"/v1/sessions/{session}/fork").json()["id"]
            patch(client, session, pinned=True, ttl_seconds=5000)
            told, text = client.get(f"/v1/sessions/{session}").json(), text_of(client, session)
            client.headers.update(second)
            foreign = create(client)
            append(client, foreign, "Mine.")
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=15) == 0
        with start(tiny_folder, **kept, **keys) as (client, _):
            client.headers["authorization"] = "Bearer first-key"
            assert names(client) == [session, fork]
            assert client.get(f"/v1/sessions/{session}").json() == told
            assert (told["pinned"], told["ttl_seconds"]) == (True, 5000)
            assert client.get(f"/v1/sessions/{fork}").json()["parent"] == session
            assert text_of(client, session) == text_of(client, fork) == text == text_of(never, steady)
            next_answer = chat(never, steady, MORE)["choices"]
            for each in (session, fork):
                answer = chat(client, each, MORE)
                assert answer["choices"] == next_answer
                cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
                assert cached >= told["tokens"] - BLOCK, "what was computed before the restart is used"
            assert client.get(f"/v1/sessions/{foreign}").status_code == 404
            client.headers.update(second)
            assert names(client) == [foreign]
            assert text_of(client, foreign) == "Mine."
            for hidden in (session, fork):
                assert client.get(f"/v1/sessions/{hidden}/text").status_code == 404
                assert client.patch(f"/v1/sessions/{hidden}", json={"pinned": False}).status_code == 404
                assert client.delete(f"/v1/sessions/{hidden}").status_code == 404
                asked = question(hidden)
                assert client.post("/v1/chat/completions", json=asked).status_code == 404


def test_a_deleted_session_stays_deleted(tiny_folder: Path, tmp_path: Path) -> None:
    kept = {"disk_kv_path": str(tmp_path)}
    with served(tiny_folder, **kept) as client:
        gone, fork = create(client), ""
        append(client, gone, TEXT)
        fork = client.post(f"/v1/sessions/{gone}/fork").json()["id"]
        assert client.delete(f"/v1/sessions/{gone}").status_code == 200
    with served(tiny_folder, **kept) as client:
        assert names(client) == [fork]
        assert text_of(client, fork) == TEXT


def test_a_session_shorter_than_a_block_comes_back(tiny_folder: Path, tmp_path: Path) -> None:
    kept = {"disk_kv_path": str(tmp_path)}
    with served(tiny_folder, **kept) as client:
        session = create(client)
        append(client, session, "Here we go.")
    with served(tiny_folder, **kept) as client:
        answer = chat(client, session)
        fresh = create(client)
        append(client, fresh, "Here we go.")
        assert answer["choices"] == chat(client, fresh)["choices"]


def test_idle_sessions_hold_no_memory(tiny_folder: Path, tmp_path: Path) -> None:
    """More of them than memory has blocks, none of which is full and could go to the disk."""
    memory = {"kv_bytes": 34 * 8192, "step_tokens": 64, "max_running": 4, "blocks_per_head": 4}
    with served(tiny_folder, disk_kv_path=str(tmp_path), **memory) as client:
        sessions = [create(client) for _ in range(40)]
        for session in sessions:
            append(client, session, "Here we go.")
        append(client, sessions[0], TEXT)
        assert scrape(client)["cairn_session_evictions_total[room]"] == 0


def test_without_a_folder_nothing_is_kept(tiny_folder: Path) -> None:
    with served(tiny_folder) as client:
        create(client)
    with served(tiny_folder) as client:
        assert names(client) == []


def test_one_server_at_a_time_has_the_folder(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(tiny_folder, disk_kv_path=str(tmp_path)) as client:
        session = create(client)
        line = refused(capsys, "--model", tiny_folder, "--disk-kv-path", tmp_path)
        assert line.endswith(
            f"disk_kv_path: another process uses the store in {tmp_path}; give each server a folder of its own"
        )
        append(client, session, TEXT)
        assert text_of(client, session) == TEXT


def test_another_model_does_not_see_the_sessions_and_leaves_them_alone(tiny_folder: Path, tmp_path: Path) -> None:
    kept, other = {"disk_kv_path": str(tmp_path / "store")}, tmp_path / "other"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_folder)).save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(other)
    with served(tiny_folder, **kept) as client:
        session = create(client)
        append(client, session, TEXT)
        fork = client.post(f"/v1/sessions/{session}/fork").json()["id"]
        expected = chat(client, fork)["choices"]
    with served(other, **kept) as client:
        assert names(client) == []
        assert client.get(f"/v1/sessions/{session}").status_code == 404
        its_own = create(client)
        append(client, its_own, TEXT)
        assert chat(client, its_own)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    with served(tiny_folder, **kept) as client:
        assert names(client) == [session, fork]
        answer = chat(client, session)
        assert answer["choices"] == expected
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= count(client, TEXT) - BLOCK
        assert scrape(client)["cairn_kv_damaged_blocks_total"] == 0
    with served(other, **kept) as client:
        assert names(client) == [its_own]


def test_other_settings_compute_the_text_again(tiny_folder: Path, tmp_path: Path) -> None:
    kept = {"disk_kv_path": str(tmp_path)}
    with served(tiny_folder, **kept) as client:
        session = create(client)
        append(client, session, TEXT)
    with served(tiny_folder, block_size=8, **kept) as client:
        answer = chat(client, session)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert text_of(client, session).startswith(TEXT)
        fresh = create(client)
        append(client, fresh, TEXT)
        assert chat(client, fresh)["choices"] == answer["choices"]


def test_an_idle_session_goes_when_its_time_is_over(tiny_folder: Path, tmp_path: Path) -> None:
    kept = {"disk_kv_path": str(tmp_path)}
    with served(tiny_folder, session_ttl=1.0, **kept) as client:
        by_default = create(client)
        assert client.post("/v1/sessions", json={"ttl_seconds": 0.5}).json()["ttl_seconds"] == 0.5
        pinned = client.post("/v1/sessions", json={"pinned": True}).json()["id"]
        longer = client.post("/v1/sessions", json={"ttl_seconds": 5000}).json()["id"]
        for ever in (pinned, longer):
            append(client, ever, TEXT)
        eventually(lambda: names(client) == [pinned, longer])
        response = client.post("/v1/chat/completions", json=question(by_default))
        assert (response.status_code, response.json()["error"]["code"]) == (404, "session_not_found")
        assert scrape(client)["cairn_session_evictions_total[expired]"] == 2
        used = client.post("/v1/sessions", json={"ttl_seconds": 2}).json()["id"]
        for _ in range(10):  # use keeps it
            time.sleep(0.25)
            append(client, used, "Here. ")
        patch(client, pinned, pinned=False)
        assert client.get(f"/v1/sessions/{pinned}").json()["ttl_seconds"] == 1.0
        assert client.post("/v1/sessions", json={"ttl_seconds": 0}).json()["ttl_seconds"] is None
    time.sleep(2.0)
    with served(tiny_folder, **kept) as client:  # its time went on while no server ran
        eventually(lambda: not {pinned, used} & set(names(client)))
        assert longer in names(client)


def test_a_session_is_pinned_and_given_a_time(tiny_folder: Path, tmp_path: Path) -> None:
    kept = {"disk_kv_path": str(tmp_path)}
    with served(tiny_folder, **kept) as client:
        session = create(client)
        told = client.get(f"/v1/sessions/{session}").json()
        assert (told["pinned"], told["ttl_seconds"]) == (False, None)
        assert patch(client, session, ttl_seconds=60)["ttl_seconds"] == 60
        told = patch(client, session, pinned=True)
        assert (told["pinned"], told["ttl_seconds"]) == (True, 60), "what is left out stays as it is"
        for wrong in ({"ttl_seconds": -1}, {"ttl_seconds": "long"}, {"pinned": "yes"}, {"name": "mine"}):
            response = client.patch(f"/v1/sessions/{session}", json=wrong)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == next(iter(wrong))
        assert client.get(f"/v1/sessions/{session}").json() == told
        assert client.patch("/v1/sessions/unknown", json={"pinned": True}).status_code == 404
    with served(tiny_folder, **kept) as client:
        assert client.get(f"/v1/sessions/{session}").json() == told
        told = patch(client, session, pinned=False, ttl_seconds=0)
        assert (told["pinned"], told["ttl_seconds"]) == (False, None)
    with served(tiny_folder, **kept) as client:
        assert client.get(f"/v1/sessions/{session}").json() == told


def test_a_key_may_hold_so_many_tokens(tiny_folder: Path, tmp_path: Path) -> None:
    kept = {"disk_kv_path": str(tmp_path), "tenant_tokens": 300, "api_keys": ("first-key", "second-key")}
    with served(tiny_folder, **kept) as client:
        client.headers["authorization"] = "Bearer first-key"
        held = append(client, create(client), TEXT)["tokens"]
    with served(tiny_folder, **kept) as client:
        client.headers["authorization"] = "Bearer first-key"
        session = create(client)
        response = client.post(f"/v1/sessions/{session}/append", json={"text": TEXT})
        assert response.status_code == 429
        error = response.json()["error"]
        assert error["code"] == "quota_exceeded"
        assert error["message"] == f"your sessions would hold {2 * held} tokens together, the limit is 300; delete some"
        assert "retry-after" in response.headers
        assert client.post("/v1/chat/completions", json=question(None, TEXT)).status_code == 200, "nothing is kept"
        client.headers["authorization"] = "Bearer second-key"
        append(client, create(client), TEXT)
        client.headers["authorization"] = "Bearer first-key"
        assert client.delete(f"/v1/sessions/{names(client)[0]}").status_code == 200
        append(client, session, TEXT)


def test_a_wrong_setting_of_the_store_ends_at_once(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--model", tiny_folder)
    line = refused(capsys, *model, "--disk-kv-bytes", "1GiB")
    assert line == "cairn: disk_kv_bytes: says how much disk_kv_path may hold; give a folder there"
    (tmp_path / "file").write_text("not a folder")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        line = refused(capsys, *model, "--disk-kv-path", place)
        assert f"disk_kv_path: the store in {place} cannot be used" in line
    kept = ("--disk-kv-path", tmp_path / "store")
    line = refused(capsys, *model, *kept, "--kv-bytes", "64KiB")
    assert "kv_bytes: must hold" in line
    assert line.endswith("give more, or make step_tokens, max_running or blocks_per_head smaller")
    assert "disk_kv_bytes: must hold" in refused(capsys, *model, *kept, "--disk-kv-bytes", "1KiB")
    line = refused(capsys, *model, *kept, "--kv-bytes", "64 parsecs")
    assert line == "cairn: kv_bytes: '64 parsecs' is not a valid number of bytes, such as 4GiB"


def test_a_folder_of_something_else_is_refused(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "catalogue.sqlite").write_text("No catalogue, but a diary. " * 100)
    line = refused(capsys, "--model", tiny_folder, "--disk-kv-path", tmp_path)
    assert "disk_kv_path: " in line
    assert "move this file away" in line
    assert (tmp_path / "catalogue.sqlite").read_text().startswith("No catalogue")
