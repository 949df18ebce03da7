"""What the arguments of commands may be, checked before anything long begins. Imports nothing that takes time."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def whole(least: int, most: int = 10**9) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def number(value: str) -> int:
        try:
            found = int(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{value!r} is no whole number") from None
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(f"must lie between {least:,} and {most:,}")
        return found

    return number


def temperature(value: str) -> float:
    """From 0 to 2, said before anything long begins."""
    try:
        found = float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is no number") from None
    if not 0 <= found <= 2:
        raise argparse.ArgumentTypeError("must lie between 0 and 2")
    return found


def url(value: str) -> str:
    """An address that HTTP can be spoken to."""
    if "://" in value and not value.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{value!r} is no address of a server: http://… or https://…")
    return value


def words(value: str) -> str:
    """A text that says something."""
    if not value.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return value
