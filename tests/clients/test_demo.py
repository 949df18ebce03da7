"""The demo itself, shortened, against the real server and the shipped model; and how it fails."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "cairn-4m"
DEMO = [sys.executable, "-m", "clients.demo"]


# One thread: on few cores that other work keeps busy, more of them wait for each other.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*DEMO, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def short() -> subprocess.CompletedProcess[str]:
    """The demo on 2,000 tokens, run once."""
    return demo("--model", MODEL, "--tokens", "2000")


def test_it_runs_through(short: subprocess.CompletedProcess[str]) -> None:
    assert short.returncode in (0, 1), short.stdout + short.stderr
    assert short.stderr == ""
    assert short.stdout.count("\nasked ") == 3
    assert "KV on" in short.stdout


def test_every_answer_is_right(short: subprocess.CompletedProcess[str]) -> None:
    assert short.returncode == 0, short.stdout
    assert "All 3 answers are right." in short.stdout


def test_the_text_is_not_read_again(short: subprocess.CompletedProcess[str]) -> None:
    read = _numbers(r"read +([\d,]+) tokens in", short.stdout)[0]
    cached = _numbers(r"([\d,]+) of [\d,]+ tokens cached", short.stdout)
    assert read >= 2000
    # The open block may be computed again; what earlier answers said is cached too.
    assert len(cached) == 3
    assert cached == sorted(cached)
    assert cached[0] > 0.9 * read


def test_it_prints_what_each_answer_read(short: subprocess.CompletedProcess[str]) -> None:
    assert short.stdout.count("of attention to tokens") >= 3


def test_a_log_is_plain(short: subprocess.CompletedProcess[str]) -> None:
    lines = short.stdout.splitlines()
    assert all(character.isprintable() for line in lines for character in line)
    assert "100%" in short.stdout


def test_a_file_of_the_user(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("It rained all day, and nobody came. " * 60, encoding="utf-8")
    result = demo("--model", MODEL, "--text", book, "--facts", "2")
    assert result.returncode in (0, 1), result.stdout + result.stderr
    assert "book.txt" in result.stdout
    assert result.stdout.count("\nasked ") == 2


def test_wrong_answers_are_named(tmp_path: Path) -> None:
    """A model whose weights are noise knows nothing."""
    shutil.copytree(MODEL, tmp_path / "noise")
    weights = load_file(MODEL / "model.safetensors")
    noise = {name: torch.randn_like(value) * 0.02 for name, value in weights.items()}
    save_file(noise, tmp_path / "noise" / "model.safetensors", {"format": "pt"})
    result = demo("--model", tmp_path / "noise", "--tokens", "500", "--facts", "2")
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search(r"2 of 2 answers are wrong: \w+, \w+", result.stdout)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    result = demo("--model", tmp_path / "nothing")
    assert result.returncode == 2
    assert "ended by itself" in result.stdout
    assert "nothing" in result.stdout.split("log:")[1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "nowhere.txt"), "nowhere.txt can not be read"),
        (("--url", "http://127.0.0.1:9"), "no server is ready"),
    ],
)
def test_setup_problems(arguments: tuple[str, str], message: str) -> None:
    result = demo("--model", MODEL, *arguments)
    assert result.returncode == 2
    assert message in " ".join(result.stdout.split())
    assert result.stderr == ""


@pytest.mark.parametrize("arguments", [("--tokens", "0"), ("--facts", "999"), ("--tokens", "many"), ("--what",)])
def test_wrong_options(arguments: tuple[str, ...]) -> None:
    result = demo(*arguments)
    assert result.returncode == 2
    assert "usage:" in result.stderr


@pytest.fixture
def started() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A demo whose server is ready, and the server's URL."""
    command = [*DEMO, "--model", str(MODEL)]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, next(found[1] for line in process.stdout if (found := re.search(r"(http://\S+),", line)))
        process.terminate()  # not killed: it would leave its server behind


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_ends_its_server(
    started: tuple[subprocess.Popen[str], str], number: signal.Signals
) -> None:
    process, url = started
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "interrupted" in out
    assert _refused(url)


DROPPED = """
import os, signal, sys
from clients.demo import cli, screen

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass

def text(*shown, tell=screen.Screen.text):
    tell(*shown)
    Finalised()

screen.Screen.text = text
sys.exit(cli.main())
"""


def test_an_interruption_that_python_drops() -> None:
    """What is raised in a finaliser goes no further; the demo ends all the same, and does not read its text first."""
    command = [sys.executable, "-c", DROPPED, "--model", str(MODEL)]
    result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert "Exception ignored in" in result.stderr
    assert result.returncode == 130, result.stdout
    assert "interrupted" in result.stdout
    assert "10%" not in result.stdout


def test_a_server_that_dies_while_it_reads(started: tuple[subprocess.Popen[str], str]) -> None:
    process, _ = started
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("   10%"))
    server = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8")
    os.kill(int(server), signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2, out
    assert "the server ended by itself with exit code -9" in " ".join(out.split())


def _refused(url: str) -> bool:
    """Whether nobody listens at `url` any more."""
    result = demo("--url", url)
    return result.returncode == 2 and "no server is ready" in result.stdout


def _numbers(pattern: str, text: str) -> list[int]:
    return [int(found.replace(",", "")) for found in re.findall(pattern, text)]
