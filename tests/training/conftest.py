"""A small corpus that every Python has, in the tokens of the shipped model."""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from training.corpus import GRASS, Corpus, encode_all
from training.names import Names
from training.tasks import Tasks


@pytest.fixture(scope="session")
def text() -> str:
    return "\n".join(pydoc_data.topics.topics.values())[:120_000]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(Path(__file__).parents[2] / "models" / "cairn-4m" / "tokenizer.json"))


@pytest.fixture(scope="session")
def tasks(text: str, tokenizer: Tokenizer) -> Tasks:
    prose, code = encode_all(tokenizer, [text[:100_000]]), encode_all(tokenizer, [text[100_000:]])
    return Tasks(Corpus(prose, code, tokenizer.encode(" " + GRASS).ids), tokenizer, Names(text))
