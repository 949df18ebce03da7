"""The command line: `cairn serve`, `check`, `keys`. Checks what is cheap to check before anything heavy is imported.

Owns arguments and exit codes: 0 after a clean stop, 2 for a model or a setting that cannot work; `check` ends with 1 if
it found what it did not mend.
"""

from __future__ import annotations

import argparse
import errno
import gc
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server import keys_cli, logs, serve_arguments
from server.keys import KeysError, read_keys
from server.settings import SettingError, parse, read_settings

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    given = vars(_parser().parse_args(arguments))
    command = given.pop("command")
    if command == "check":
        return _check(Path(given["path"]), repair=given["repair"])
    if command == "keys":
        return keys_cli.run(given)
    try:
        settings = read_settings({name: parse(name, text) for name, text in given.items() if text is not None})
        check_model_exists(settings.model)
        if settings.keys_file is not None:
            read_keys(Path(settings.keys_file))
        check_address(settings.host, settings.port)
    except (SettingError, KeysError) as error:
        print(f"cairn: {error}", file=sys.stderr)
        return 2
    logs.configure(settings)
    gc.disable()  # until the model is loaded: nearly all of what is made now is kept, and looking at it takes a second
    from server.serving import serve  # torch and transformers: seconds

    return serve(settings)


def _check(folder: Path, *, repair: bool) -> int:
    """Print what is wrong with a folder of sessions; 0 if nothing is, or if all of it was mended."""
    from engine import StoreError, check  # torch: a second

    try:
        found = check(folder, repair=repair)
    except StoreError as error:
        print(f"cairn: {error}", file=sys.stderr)
        return 2
    for sentence in (*found.problems, *found.mended):
        print(sentence)
    print(f"{found.sessions} sessions, {found.tokens} tokens, {found.blocks} blocks, {len(found.problems)} problems")
    if found.problems and not repair:
        print("--repair mends them: what is lost is computed again from the sessions' texts")
    return 1 if found.problems and not repair else 0


def check_model_exists(model: str) -> None:
    """SettingError if `model` is neither a model folder nor the name of one on the hub."""
    folder = Path(model)
    if (folder / "config.json").is_file():
        return
    if folder.exists():
        raise SettingError(f"model: {model} holds no config.json, so it is no model folder")
    if not HUB_NAME.fullmatch(model) or folder.parent.is_dir():
        raise SettingError(f"model: there is no folder {model}")


def check_address(host: str, port: int) -> None:
    """SettingError if nobody can listen there: known before the model is loaded."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SettingError(f"host: {host} is no address of this machine: {error.strerror}") from error
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise SettingError(f"port: another program listens on {host}:{port}; take another --port") from error
            if error.errno != errno.EADDRNOTAVAIL or len(found) == 1:  # a name may have one that is not ours
                raise SettingError(f"port: can not listen on {host}:{port}: {error.strerror}") from error


class _Strict(argparse.ArgumentParser):
    """Says itself which of its arguments it does not know; argparse lets the outermost parser do that."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cairn", description="An inference server whose KV cache is a memory.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Strict)
    serve_arguments.add(commands)
    about = "Verify a folder of stored sessions (--disk-kv-path) that no server uses, block by block."
    checked = commands.add_parser("check", help="verify a folder of stored sessions", description=about)
    checked.add_argument("path", metavar="PATH", help="the folder")
    checked.add_argument("--repair", action="store_true", help="mend what can be mended")
    keys_cli.add(commands)
    return parser
