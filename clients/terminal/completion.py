"""Tab: a script for the shell, which asks this program what may come next.

Knows how the server's own commands tell their options: by their help.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable

from clients.terminal.parser import SERVER_COMMANDS

OPTION = re.compile(r"^  (--[a-z][a-z-]*)", re.MULTILINE)
BELOW = re.compile(r"^  \{([a-z,-]+)\}$", re.MULTILINE)
PATIENCE = 1.0  # seconds that Tab may take to ask a server


def script(shell: str) -> str:
    """What the shell is to read."""
    from argcomplete.shell_integration import shellcode

    return str(shellcode(["cairn"], True, shell))


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, if it is the shell that asks; the program ends then."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    words = os.environ.get("COMP_LINE", "").split()
    if len(words) > 1 and words[1] in SERVER_COMMANDS:
        line = os.environ["COMP_LINE"]
        _add_options(parser, words[1:] if line.endswith(" ") else words[1:-1] or words[1:])
    argcomplete.autocomplete(parser)


def session_ids(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """The ids of the server's sessions; none if it does not answer at once."""
    from cairn_client import Cairn, CairnError, Retries

    try:
        key = getattr(parsed_args, "api_key", None)
        with Cairn(getattr(parsed_args, "url", None), api_key=key, timeout=PATIENCE, retries=Retries(0)) as cairn:
            return [session.id for session in cairn.sessions.page(limit=100).data]
    except CairnError:
        return []


def _add_options(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """Give the stub of a server's command what its own help tells: options, and commands below it."""
    named = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    help_of = [sys.executable, "-m", "server", *named, "--help"]
    told = subprocess.run(help_of, capture_output=True, text=True, check=False).stdout
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    stub = commands.choices[words[0]]
    for option in OPTION.findall(told):
        stub.add_argument(option)
    below = [name for names in BELOW.findall(told) for name in names.split(",")]
    rest = stub.add_argument("rest", nargs="*")
    rest.completer = _one_of(below)  # argcomplete looks for it


def _one_of(names: list[str]) -> Callable[..., list[str]]:
    """A completer of these names, for argcomplete."""
    return lambda **_: names
