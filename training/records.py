"""Files that a model is fine-tuned on, as records of text. Knows no token.

A file is a plain text (one record) or `.jsonl[.xz]`, one JSON object in a line: `text`, and `title` if it has one.
Text is always meant literally: the name of a control token in it stays a name. A made sample says instead which of
its `parts` are control text and what each weighs in the loss: `[{"text": …, "special": true, "weight": 0.5}, …]`.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Something that the user gave cannot be used; the message says what to change."""


@dataclass(frozen=True)
class Part:
    """A piece of text.

    Attributes:
        special: names of control tokens in it are these tokens
        weight: of its tokens in the loss
    """

    text: str
    special: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Record:
    """One document. A whole one is never cut: it must fit a row."""

    title: str
    parts: tuple[Part, ...]
    whole: bool = False


def read_records(path: Path) -> Iterator[Record]:
    """Records of a file; raises InputError."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    if ".jsonl" not in path.name:
        yield Record(path.stem, (Part(path.read_text(encoding="utf-8", errors="replace")),))
        return
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield parse(line, f"{path}:{number}")


def parse(line: str, place: str) -> Record:
    """One line of a `.jsonl` file."""
    try:
        record = json.loads(line)
        title = str(record.get("title", ""))
        if "parts" in record:
            return Record(title, tuple(part(each) for each in record["parts"]), whole=True)
        if not isinstance(record["text"], str):
            raise TypeError("`text` must be a string")
        return Record(title, (Part(record["text"]),))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{place}: not a record ({error}); give a JSON object with `text` or `parts` in each line"
        ) from error


def part(values: dict[str, Any]) -> Part:
    made = Part(**values)
    if not isinstance(made.text, str) or not isinstance(made.special, bool) or not made.weight >= 0:
        raise ValueError("a part has a `text`, and may have `special` (true or false) and a `weight` from 0 up")
    return made


def to_json(parts: list[Part]) -> str:
    """A record as a line of a `.jsonl` file; what is as usual is left out."""
    usual = Part("")
    values = [
        {"text": p.text}
        | ({"special": True} if p.special else {})
        | ({"weight": p.weight} if p.weight != usual.weight else {})
        for p in parts
    ]
    return json.dumps({"parts": values}, ensure_ascii=False)
