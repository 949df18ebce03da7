"""Tab: a script for the shell, which asks this program what may come next.

Knows how the server's own commands tell their actions and options: by their help.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys

from clients.terminal.exits import OK
from clients.terminal.parser import SERVER_COMMANDS

OPTION = re.compile(r"^  (--[a-z][a-z-]*)", re.MULTILINE)
ACTIONS = re.compile(r"^  \{([a-z,]+)\}$", re.MULTILINE)
PATIENCE = 1.0  # seconds that Tab may take to ask a server


def script(shell: str) -> str:
    """What the shell is to read."""
    from argcomplete.shell_integration import shellcode

    return str(shellcode(["cairn"], shell=shell))


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, if it is the shell that asks; the program ends then."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    words = os.environ.get("COMP_LINE", "").split()[1:]
    if words and words[0] in SERVER_COMMANDS:
        _add_arguments(parser, words)
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


def _add_arguments(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """Give the stub of a server's command the actions and options that its own help tells."""
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    stub, told = commands.choices[words[0]], _help(words[0])
    if listed := ACTIONS.search(told):
        actions = listed[1].split(",")
        stub.add_argument("action", choices=actions)
        told = _help(*words[:2]) if words[1:] and words[1] in actions else ""
    for option in OPTION.findall(told):
        stub.add_argument(option)


def _help(*words: str) -> str:
    run = subprocess.run([sys.executable, "-m", "server", *words, "--help"], capture_output=True, text=True)
    return run.stdout if run.returncode == OK else ""
