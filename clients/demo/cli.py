"""Options and exit codes of the demo.

0: every answer is right. 1: an answer is wrong. 2: it could not be run (text, model, server). 130: Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cairn_client import CairnError
from rich.console import Console

from clients.demo.errors import DemoError, ServerError
from clients.demo.facts import CITIES
from clients.demo.interruption import Interruption
from clients.demo.screen import Screen
from clients.demo.text import DEFAULT_TOKENS
from clients.demo.tour import Options, tour

RIGHT, WRONG, NOT_RUN, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    options = parse(arguments)
    _prepare_output()
    interruption, screen = Interruption(), Screen(Console(highlight=False))
    try:
        return WRONG if tour(options, screen, interruption) else RIGHT
    except (KeyboardInterrupt, DemoError, CairnError) as error:
        if interruption.came:
            screen.failed("interrupted")
            return INTERRUPTED
        screen.failed(str(error), error.log if isinstance(error, ServerError) else "")
        return NOT_RUN


def parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m clients.demo", description="Hide facts in a long text and ask.")
    parser.add_argument(
        "--model", default="models/cairn-4m", help="a folder or a hub name for the server to start with"
    )
    parser.add_argument("--text", type=Path, help="a UTF-8 file to read instead of Python's language reference")
    length = f"cut or repeat the text to this (default {DEFAULT_TOKENS:,}; a file: all of it)"
    parser.add_argument("--tokens", type=_number(1, 10**9), help=length)
    parser.add_argument("--facts", type=_number(1, len(CITIES)), default=6, help="how many to hide (default 6)")
    parser.add_argument("--seed", type=int, default=7, help="of keys, places and questions (default 7)")
    parser.add_argument("--url", help="a running server to use instead of starting one")
    parser.add_argument("--api-key", dest="key", help="the key of that server, if it wants one")
    return Options(**vars(parser.parse_args(arguments)))


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(value: str) -> int:
        if not least <= int(value) <= most:
            raise argparse.ArgumentTypeError(f"must lie between {least:,} and {most:,}")
        return int(value)

    return number


def _prepare_output() -> None:
    # A terminal or log that is not UTF-8 shows a question mark where it has no character, instead of failing.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
