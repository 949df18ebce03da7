"""A stop string ends the text wherever the pieces' borders lie."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from server.stops import StopScanner


def scan(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    text = "".join(scanner.push(piece) for piece in pieces)
    return text + scanner.finish(), scanner.stopped


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("hello END world", ["END"], "hello "),
        ("hello world", ["END"], "hello world"),
        ("hello EN", ["END"], "hello EN"),
        ("aaab", ["aab"], "a"),
        ("xabcdef", ["abcdef", "cd"], "xab"),
        ("END", ["END"], ""),
        ("no stops", [], "no stops"),
    ],
)
def test_every_split_gives_the_same(text: str, stops: list[str], expected: str) -> None:
    for cuts in itertools.combinations(range(1, len(text)), 2):
        edges = [0, *cuts, len(text)]
        pieces = [text[begin:end] for begin, end in itertools.pairwise(edges)]
        assert scan(pieces, stops)[0] == expected, pieces
    assert scan(list(text), stops) == (expected, expected != text)


def test_only_a_possible_beginning_is_held_back() -> None:
    scanner = StopScanner(["<end>"])
    assert scanner.push("text <en") == "text "
    assert scanner.push("try") == "<entry"
    assert scanner.push("<end>more") == ""
    assert scanner.push("later") == ""
    assert scanner.stopped
