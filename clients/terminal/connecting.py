"""The client that the options ask for."""

from __future__ import annotations

from argparse import Namespace

from cairn_client import Cairn, Retries

RETRIES = Retries(attempts=2, first=0.2)  # somebody waits in front of the screen


def connected(options: Namespace) -> Cairn:
    """A client for `--url` and `--api-key`, which fall back to CAIRN_URL and CAIRN_API_KEY."""
    return Cairn(options.url, api_key=options.api_key, retries=RETRIES)


def sampling(options: Namespace) -> dict[str, float | int]:
    """What the options say about an answer; what they do not say is the server's default."""
    names = ("temperature", "max_tokens", "seed")
    return {name: value for name in names if (value := getattr(options, name)) is not None}
