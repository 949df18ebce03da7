"""The command line: `cairn serve`, `check`, `keys`. Checks what is cheap to check before anything heavy is imported.

Owns arguments and exit codes: 0 after a clean stop, 2 for a model or a setting that cannot work; `check` ends with 1 if
it found what it did not mend.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from server import keys_cli, logs
from server.keys import KeysError, read_keys
from server.settings import SettingError, Settings, parse, read_settings, variable

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
ENVIRONMENT_ONLY = ("api_keys", "admin_key")  # a command line can be read by every user of the machine


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cairn", description="An inference server whose KV cache is a memory.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve a model over HTTP", description="Serve a model over HTTP.")
    about = "Verify a folder of stored sessions (--disk-kv-path) that no server uses, block by block."
    checked = commands.add_parser("check", help="verify a folder of stored sessions", description=about)
    checked.add_argument("path", metavar="PATH", help="the folder")
    checked.add_argument("--repair", action="store_true", help="mend what can be mended")
    keys_cli.add(commands)
    for each in fields(Settings):
        if each.name not in ENVIRONMENT_ONLY:
            _add(serve, each.name, each.metadata["help"], each.default)
    return parser


def _add(parser: argparse.ArgumentParser, name: str, description: str, default: Any) -> None:
    shown = "" if default is None else f" (default: {default})"
    text = f"{description}{shown} [{variable(name)}]".replace("%", "%%")
    parser.add_argument("--" + name.replace("_", "-"), metavar="VALUE", help=text)
