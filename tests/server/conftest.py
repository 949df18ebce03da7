"""Real servers, each a process of its own on a free loopback port, and clients for them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.server.patience import until

ROOT = Path(__file__).parents[2]
CAIRN = ROOT / "models" / "cairn-4m"
READY_WITHIN = 180.0
# One thread each: threads that wait by spinning make a shared machine many times slower.
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

Json = dict[str, Any]
Start = Callable[..., AbstractContextManager[tuple[httpx.Client, subprocess.Popen[bytes]]]]
Events = Callable[[httpx.Response], list[Json]]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with the shipped tokenizer: fast, and serves without trained landmarks."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16384,
        eos_token_id=4,
        bos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(CAIRN).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def start() -> Start:
    """Starts a server: `start(model, setting=value, ...)`, a context of a client and the process."""
    return _start


@pytest.fixture(scope="session")
def cairn(start: Start) -> Iterator[httpx.Client]:
    """The shipped model with the default settings."""
    with start(CAIRN) as (client, _):
        yield client


@pytest.fixture(scope="session")
def tiny(start: Start, tiny_folder: Path) -> Iterator[httpx.Client]:
    """The random model, with a keep-alive so short that a test can wait for it."""
    with start(tiny_folder, keepalive_seconds=0.02, step_tokens=2048) as (client, _):
        yield client


@pytest.fixture(scope="session")
def guarded(start: Start, tiny_folder: Path) -> Iterator[httpx.Client]:
    """The random model behind two keys, with small limits; the client has no key."""
    limits = {"max_session_tokens": 4000, "max_body_bytes": 100_000, "max_running": 1, "max_waiting": 1}
    with start(tiny_folder, api_keys="first-key,second-key", kv_bytes=3 << 20, **limits) as (client, _):
        yield client


@pytest.fixture
def ask(cairn: httpx.Client) -> Iterator[openai.OpenAI]:
    """The official client of the shipped model."""
    with openai.OpenAI(base_url=f"{cairn.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def events() -> Events:
    """The JSON events of a stream whose end is checked."""
    return _events


@contextmanager
def _start(model: Path, **settings: Any) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    port = _free_port()
    variables = {f"CAIRN_{name.upper()}": str(value) for name, value in settings.items()}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
    command = [sys.executable, "-m", "server", "serve", "--model", str(model), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env={**inherited, **QUIET, **variables})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            _await_health(client, process)
            yield client, process
    finally:
        process.kill()
        process.wait()


def _await_health(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    until(lambda: _healthy(client), process, READY_WITHIN, "the server did not come up")


def _healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _events(response: httpx.Response) -> list[Json]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = [frame for frame in response.text.split("\n\n") if frame and not frame.startswith(":")]
    assert all(frame.startswith("data: ") for frame in frames)
    assert frames[-1] == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-1]]
