"""The best of many numbers, against sorting them."""

from __future__ import annotations

import numpy as np
import pytest

from cache import kernels

BEHIND = 128


@pytest.mark.parametrize("scale", [0.3, 2.0, 8.0, 30.0])
@pytest.mark.parametrize("kind", ["apart", "many as small as can be", "few that differ"])
def test_the_largest_are_found_and_of_equal_ones_the_first(scale: float, kind: str) -> None:
    generator = np.random.default_rng(0)
    for count in (1, 3, 9, 64, 65, 130, 1000, 4000):
        for wanted in (0, 1, 2, 5, 24, 256):
            drawn = np.exp(scale * generator.standard_normal(count))
            numbers = np.zeros(count + BEHIND, np.float32)
            numbers[:count] = drawn / drawn.sum()
            if kind == "many as small as can be":
                numbers = np.maximum(numbers, np.float32(1e-4))
            if kind == "few that differ":
                numbers = np.round(numbers * 50) / np.float32(50)
            expected = np.sort(np.argsort(-numbers[:count], kind="stable")[:wanted])
            found = np.full(count + 1, -7)
            there = kernels("best").best_of(numbers, count, wanted, float(numbers[:count].sum()), found)
            assert found[:there].tolist() == expected.tolist()
            assert (found[there:] == -7).all()


@pytest.mark.parametrize("wrong", [np.inf, np.nan, -np.inf])
@pytest.mark.parametrize("most", [1e-3, np.nan, -np.inf])
def test_nothing_is_written_beyond_what_is_wanted(wrong: float, most: float) -> None:
    """Whatever a model that overflows makes of its numbers."""
    for share in (0.001, 0.5, 1.0):
        numbers = np.ones(1000 + BEHIND, np.float32)
        numbers[: int(1000 * share)] = wrong
        found = np.full(1000, -7)
        there = kernels("best").best_of(numbers, 1000, 24, most, found)
        assert there <= 24
        assert (found[there:] == -7).all()
