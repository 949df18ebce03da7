"""Tab: a script for the shell, which asks this program what may come next.

Knows how the server's own commands tell their options: by their help.
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

    words = os.environ.get("COMP_LINE", "").split()
    if len(words) > 1 and words[1] in SERVER_COMMANDS:
        _add_options(parser, words[1])
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


def _add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """Give the stub of a server's command the options that its own help tells."""
    run = subprocess.run([sys.executable, "-m", "server", command, "--help"], capture_output=True, text=True)
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for option in OPTION.findall(run.stdout) if run.returncode == OK else ():
        commands.choices[command].add_argument(option)
