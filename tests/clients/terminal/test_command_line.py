"""`cairn` itself: help that teaches, exit codes, completion, a quick start."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cairn_client import Cairn

from clients.terminal.completion import script
from clients.terminal.parser import SERVER_COMMANDS, build
from tests.clients.conftest import ROOT
from tests.clients.terminal.conftest import CAIRN, Run


def parsers(parser: argparse.ArgumentParser, name: str = "cairn") -> dict[str, argparse.ArgumentParser]:
    """Every command, by all of its words."""
    found = {name: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                found |= parsers(below, f"{name} {word}")
    return found


OURS = {name: parser for name, parser in parsers(build()).items() if name.split()[-1] not in SERVER_COMMANDS}


@pytest.mark.parametrize("name", OURS)
def test_help_shows_examples(name: str) -> None:
    text = OURS[name].format_help()
    assert "examples:\n" in text
    assert f"  {name} " in text.split("examples:")[1] or name == "cairn sessions"
    assert max(map(len, text.splitlines())) <= 112


def test_the_documentation_tells_every_command_and_option() -> None:
    told = (ROOT / "docs" / "cli.md").read_text()
    for name in SERVER_COMMANDS:
        assert f"`cairn {name}`" in told
    for name, parser in OURS.items():
        assert f"`{name}" in told
        for option in parser._option_string_actions:
            assert option == "-h" or re.search(rf"`[^`]*{option}\b", told), f"{name} {option}"


def test_help_is_quick() -> None:
    """It imports nothing heavy: no client, no renderer, and nothing of the server."""
    code = (
        "import sys, clients.terminal.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'httpx', 'rich', 'prompt_toolkit', 'torch', 'server', 'argcomplete'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("ask", "file"),
        ("sessions",),
        ("bench", "--clients", "0"),
        ("sessions", "rewind", "x"),
        ("ask", "file", " "),
        ("ask", "file", "why", "--temperature", "nan"),
        ("ask", "file", "why", "--seed", "1" * 20),
    ],
)
def test_a_wrong_command_line(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: cairn")


def test_nobody_there(run: Run) -> None:
    start = time.monotonic()
    result = run("sessions", "list", "--url", "http://127.0.0.1:9")
    assert result.returncode == 3
    assert "no server can be reached at http://127.0.0.1:9" in result.stderr
    assert "cairn serve" in result.stderr
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("key", "hint"), [("wrong", "CAIRN_API_KEY"), ("", "CAIRN_API_KEY")])
def test_a_wrong_key(run: Run, key: str, hint: str) -> None:
    result = run("sessions", "list", CAIRN_API_KEY=key)
    assert result.returncode == 4
    assert hint in result.stderr
    assert "Traceback" not in result.stderr


def test_the_servers_own_commands(program: Run) -> None:
    listed = subprocess.run([sys.executable, "-m", "server", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert f"{{{','.join(SERVER_COMMANDS)}}}" in listed.stdout
    assert "--disk-kv-path" in program("serve", "--help").stdout
    refused = program("serve", "--model", "nowhere")
    assert refused.returncode == 2
    assert "cairn: model: there is no folder nowhere" in refused.stderr
    assert program("keys", "create", "acme", "--keys-file", "keys.json").stdout.startswith("cairn_")


def test_keys_are_made_by_the_same_command(program: Run, tmp_path: Path) -> None:
    made = program("keys", "create", "acme", "--keys-file", "keys.json")
    assert (made.returncode, len(made.stdout.split())) == (0, 1)
    assert "acme" in program("keys", "list", "--keys-file", "keys.json").stdout
    assert made.stdout.strip() not in (tmp_path / "keys.json").read_text()


def test_the_servers_commands_are_all_known() -> None:
    asked = subprocess.run([sys.executable, "-m", "server", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert set(asked.stdout.split("{")[1].split("}")[0].split(",")) == set(SERVER_COMMANDS)
    told = (ROOT / "docs" / "cli.md").read_text()
    assert all(f"`cairn {name}`" in told for name in SERVER_COMMANDS)


def test_the_version(run: Run) -> None:
    assert run("--version").stdout.startswith("cairn 0.")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell: str) -> None:
    assert "_ARGCOMPLETE" in script(shell)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cairn s", {"serve ", "sessions "}),
        ("cairn sessions re", {"rewind "}),
        ("cairn serve --disk", {"--disk-kv-path", "--disk-kv-bytes"}),
        ("cairn keys ", {"create", "list", "revoke", "limit"}),
        ("cairn keys create --da", {"--days"}),
        ("cairn bench --cl", {"--clients "}),
        ("cairn keys create --r", {"--role"}),
    ],
)
def test_tab(environment: dict[str, str], tmp_path: Path, line: str, expected: set[str]) -> None:
    assert {word.rstrip() for word in tab(environment, tmp_path, line)} == {word.rstrip() for word in expected}


def test_tab_knows_the_sessions(environment: dict[str, str], tmp_path: Path, cairn: Cairn) -> None:
    session = cairn.sessions.create().id
    assert session in {word.strip() for word in tab(environment, tmp_path, f"cairn sessions show {session[:6]}")}


def tab(environment: dict[str, str], folder: Path, line: str) -> list[str]:
    """What the shell would be told for this line."""
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    answer = folder / "completions"
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
    subprocess.run(CAIRN, env={**environment, **asked}, cwd=folder, check=False, capture_output=True, timeout=60)
    return answer.read_text().split("\n")


def test_a_closed_pipe_is_no_failure(program: Run) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = program("sessions", "list", capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")
