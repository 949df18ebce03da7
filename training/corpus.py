"""Texts to train on: which files, which are held out, and random windows of their tokens.

Owns the mapping from files to token arrays. Does not know what a task or a landmark is.
"""

from __future__ import annotations

import json
import lzma
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HELD_OUT = ("Dracula", "Emma", "Treasure Island", "The War of the Worlds")
"""Titles never trained on: they are the haystacks of the pass-key bench and the held-out loss."""

GRASS = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""RULER's noise haystack (NVIDIA/RULER, scripts/data/synthetic/niah.py)."""


@dataclass(frozen=True)
class Document:
    title: str
    text: str


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of a `.jsonl[.xz]` file (fields title, text) or of one plain text file."""
    if ".jsonl" not in path.name:
        yield Document(path.stem, path.read_text(encoding="utf-8", errors="replace"))
        return
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield Document(record["title"], record["text"])


def python_sources(limit: int = 6_000_000) -> Iterator[Document]:
    """Python's own library as filler that is not prose; `pydoc_data` stays unseen for the demo."""
    root = Path(sysconfig.get_paths()["stdlib"])
    total = 0
    for path in sorted(root.rglob("*.py")):
        if "site-packages" in path.parts or "pydoc_data" in path.parts or "test" in path.parts:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        total += len(text)
        if total > limit:
            return
        yield Document(path.name, text)


class Corpus:
    """Token arrays of several sources, drawn from with fixed weights.

    Attributes:
        prose: tokens of all training documents, one after the other, int32 (tokens,)
        code: tokens of Python's library, int32 (tokens,)
    """

    def __init__(self, prose: np.ndarray, code: np.ndarray, grass: list[int]) -> None:
        self.prose = prose
        self.code = code
        self._grass = grass

    @classmethod
    def load(cls, files: list[Path], tokenizer: Tokenizer, cache: Path) -> Corpus:
        """Tokenise `files` without the held-out titles, or read `cache` (.npz) from an earlier run."""
        if not cache.exists():
            documents = [d for f in files for d in read_documents(f) if d.title not in HELD_OUT]
            prose = encode_all(tokenizer, [d.text for d in documents])
            code = encode_all(tokenizer, [d.text for d in python_sources()])
            np.savez(cache, prose=prose, code=code)
        arrays = np.load(cache)
        return cls(arrays["prose"], arrays["code"], tokenizer.encode(" " + GRASS).ids)

    def window(self, rng: random.Random, length: int) -> list[int]:
        """`length` tokens of filler: mostly prose, some code, a little repeated noise."""
        draw = rng.random()
        if draw < 0.08:
            repeated = self._grass * (length // len(self._grass) + 2)
            start = rng.randrange(len(self._grass))
            return repeated[start : start + length]
        return self.text(rng, length, prose=draw < 0.80)

    def text(self, rng: random.Random, length: int, *, prose: bool = True) -> list[int]:
        """`length` consecutive tokens of prose, or of code."""
        source = self.prose if prose else self.code
        start = rng.randrange(len(source) - length)
        return [int(token) for token in source[start : start + length]]


def encode_all(tokenizer: Tokenizer, texts: list[str], piece: int = 200_000) -> np.ndarray:
    """Tokens of all texts, one after the other, int32 (tokens,)."""
    pieces = [t[i : i + piece] for t in texts for i in range(0, len(t), piece)]
    encoded = tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
    return np.concatenate([np.array(e.ids, dtype=np.int32) for e in encoded])
