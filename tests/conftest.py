"""Small random models that the tests make, and sessions to run them in."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may ask the hub for anything

import pytest
import torch

from tests.models import Bench, save_model

torch.set_num_threads(1)  # tests run beside other work, where a pass waits for its slowest thread


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama without landmarks."""
    return save_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def landmark_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose config has trained landmarks: blocks of 8, 2 recent, 1 sink, 3 fetched."""
    return save_model("llama", tmp_path_factory.mktemp("models") / "landmarks", landmarks=True)


@pytest.fixture
def bench(tiny_folder: Path) -> Bench:
    """The random Llama on a cache of its own."""
    return Bench(tiny_folder)
