"""From the command line to an exit code. Imports what a command needs when it is given: `cairn --help` is quick.

`serve`, `check` and `keys` are the server's: its own program is run in this process, with its own arguments. Nothing of
the server is imported here, and where it is not installed everything else works.
"""

from __future__ import annotations

import os
import runpy
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence

from clients.terminal import exits
from clients.terminal.completion import complete
from clients.terminal.parser import SERVER_COMMANDS, build

Command = Callable[[Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in SERVER_COMMANDS:
        return _server(given)
    parser = build()
    complete(parser)
    options = parser.parse_args(given)
    try:
        code = _guarded(COMMANDS[options.command], options)
        sys.stdout.flush()  # here, where a pipe that was closed is no failure
        return code
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:  # `cairn sessions list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK


def _guarded(command: Command, options: Namespace) -> int:
    """The command's exit code, or what its failure comes to; the message goes to stderr."""
    from cairn_client import CairnError

    from clients.terminal.failing import code_of, message_of

    try:
        return command(options)
    except BrokenPipeError:
        raise
    except (CairnError, OSError) as error:
        print(f"cairn: {message_of(error)}", file=sys.stderr)
        return code_of(error)


def _server(given: list[str]) -> int:
    sys.argv = ["cairn", *given]
    try:
        runpy.run_module("server", run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        if error.name != "server":
            raise
        print("cairn: the server is not installed here: pip install -e . in Cairn's checkout", file=sys.stderr)
        return exits.FAILED
    return exits.OK


def _chat(options: Namespace) -> int:
    from clients.terminal.chat.loop import chat

    return chat(options)


def _ask(options: Namespace) -> int:
    from clients.terminal.asking import ask

    return ask(options)


def _sessions(options: Namespace) -> int:
    from clients.terminal.sessions import run

    return run(options)


def _bench(options: Namespace) -> int:
    from clients.terminal.load import bench

    return bench(options)


def _completion(options: Namespace) -> int:
    from clients.terminal.completion import script

    print(script(options.shell))
    return exits.OK


COMMANDS: dict[str, Command] = {
    "chat": _chat,
    "ask": _ask,
    "sessions": _sessions,
    "bench": _bench,
    "completion": _completion,
}
