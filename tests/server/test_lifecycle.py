"""A server's life: loading, serving, draining; and a model that cannot be served."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from server.app import create_app
from server.service import Service, State
from server.settings import Settings

ROOT = Path(__file__).parents[2]
Start = Callable[..., AbstractContextManager[tuple[httpx.Client, subprocess.Popen[bytes]]]]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
    environment = {**clean, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_while_loading_only_probes_are_answered() -> None:
    app = create_app(Settings())  # its lifespan has not begun: it loads for ever

    async def statuses() -> dict[str, httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            paths = ("/health", "/ready", "/version", "/v1/models", "/metrics", "/docs")
            return {path: await client.get(path) for path in paths}

    told = asyncio.run(statuses())
    assert told["/version"].status_code == 200
    assert told["/health"].json() == {"status": "loading"}
    for path in ("/health", "/ready", "/v1/models", "/metrics", "/docs"):
        assert told[path].status_code == 503
    assert told["/v1/models"].json()["error"]["code"] == "loading"
    assert "retry-after" in told["/v1/models"].headers


def test_a_missing_folder_ends_at_once_with_one_line() -> None:
    begin = time.monotonic()
    ended = run("serve", "--model", "/no/such/folder")
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == ["cairn: model: there is no folder /no/such/folder"]
    assert time.monotonic() - begin < 5, "nothing heavy is imported for this"


def test_a_wrong_setting_ends_at_once() -> None:
    ended = run("serve", "--port", "http")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "port" in ended.stderr


def test_a_model_without_rotary_positions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1}))
    ended = run("serve", "--model", str(tmp_path), "--port", "0")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(f"cairn: cannot serve {tmp_path}")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("model", ["tiny", "missing"])
def test_garbage_is_collected_once_the_model_is_loaded(model: str, tiny_folder: Path) -> None:
    """The command line turns it off for the start."""
    service = Service(
        Settings(model=str(tiny_folder if model == "tiny" else tiny_folder / "missing"), kv_bytes=1 << 20)
    )
    gc.disable()
    try:
        service.start()
        service._thread.join(60)
        assert service.state is (State.READY if model == "tiny" else State.FAILED)
        assert gc.isenabled()
    finally:
        gc.enable()
        service.stop()


def test_sigterm_lets_running_requests_end(start: Start, tiny_folder: Path) -> None:
    asked = {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with start(tiny_folder) as (client, process), ThreadPoolExecutor() as pool:
        with client.stream("POST", "/v1/completions", json=asked) as running:
            lines = running.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = pool.submit(list, lines)
            time.sleep(0.3)
            refused = client.post("/v1/completions", json=asked)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert client.get("/ready").status_code == 503
            assert client.get("/health").status_code == 200
            told = [line for line in rest.result(timeout=30) if line]
        assert told[-1] == "data: [DONE]"
        assert json.loads(told[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert process.wait(timeout=15) == 0


def test_what_outlasts_the_drain_is_ended(start: Start, tiny_folder: Path) -> None:
    asked = {"prompt": "x", "max_tokens": 16000, "ignore_eos": True, "stream": True}
    with (
        start(tiny_folder, drain_seconds=0.2) as (client, process),
        client.stream("POST", "/v1/completions", json=asked) as running,
    ):
        lines = running.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        told = [line for line in lines if line]
        assert told[-1] == "data: [DONE]"
        assert json.loads(told[-2].removeprefix("data: "))["error"]["code"] == "unavailable"
        assert process.wait(timeout=15) == 0
