"""One softmax over blocks, of any shape: against plain sums in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.attention import attend_kernels

Numbers = NDArray[Any]
HEADS, BLOCKS, RECENT, NOTHING = 2, 9, 2, -1e30


@dataclass(frozen=True)
class Shape:
    """What is attended to: `groups` query heads per KV head, `pairs` of channels that turn."""

    groups: int = 2
    dim: int = 64
    pairs: int = 32
    size: int = 16
    short: bool = True
    interleaved: bool = False
    gated: bool = False
    bounded: bool = False
    window: int = 1 << 40
    read: int = 6


SHAPES = {
    "4 heads of 64": Shape(groups=4),
    "2 heads of 128": Shape(dim=128, pairs=64),
    "7 heads, 80 channels of which 20 turn": Shape(groups=7, dim=80, pairs=10),
    "16 channels": Shape(groups=3, dim=16, pairs=8),
    "neighbours turn": Shape(groups=1, dim=96, pairs=20, interleaved=True),
    "nothing turns": Shape(pairs=0),
    "fp32": Shape(groups=5, dim=48, pairs=24, short=False),
    "gated": Shape(groups=1, short=False, gated=True),
    "gated, blocks of 18": Shape(groups=2, size=18, gated=True),
    "blocks of 7": Shape(groups=4, size=7),
    "blocks of 33": Shape(groups=1, size=33, dim=32, pairs=16),
    "bounded": Shape(groups=6, bounded=True),
    "a window": Shape(window=19),
    "more blocks than a vector has lanes": Shape(groups=1, size=2, read=20, gated=True),
}


class Case:
    """Random queries, keys and values of a shape; each query reads its own block and others, in any order."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        drawn, s = np.random.default_rng(seed), shape
        self.shape, self.blocks = shape, max(BLOCKS, s.read + 3)
        end = self.blocks * s.size
        self.positions = np.array([end - 1, end - s.size, end - s.size // 2 - 1])
        counts = HEADS, len(self.positions), s.groups
        self.queries, self.far, self.rest = drawn.standard_normal((3, *counts, s.dim)).astype(np.float32)
        self.weight = drawn.standard_normal(counts).astype(np.float32)
        pool = drawn.standard_normal((2, self.blocks * HEADS * s.size, s.dim)).astype(np.float32)
        pool.view(np.uint32)[:] &= 0xFFFF0000  # as bf16 holds them
        self.keys, self.values = pool
        angles = np.arange(end)[:, None] * 3.0 ** -np.arange(s.pairs)
        self.turns = np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)  # (end, 2, R)
        self.numbers = np.array(
            [[drawn.permutation(self.blocks - 1)[: s.read] for _ in self.positions] for _ in range(HEADS)]
        )
        self.numbers[:, :, 1] = self.positions // s.size
        self.numbers[:, :, 3] = -1

    def attended(self, numbers: Numbers | None = None, rows: slice = slice(None)) -> Numbers:
        """What the kernel gives for some of the queries."""
        s, given = self.shape, self.numbers if numbers is None else numbers
        numbers = np.ascontiguousarray(given[:, rows])
        places = np.where(numbers >= 0, numbers * HEADS + np.arange(HEADS)[:, None, None], -1)
        keys, values = ((x.view(np.uint32) >> 16).astype(np.uint16) if s.short else x for x in (self.keys, self.values))
        queries, far, weight, output = (x[:, rows].copy() for x in (self.queries, self.far, self.weight, self.rest))
        positions = self.positions[rows]
        starts = np.ascontiguousarray(self.turns[:: s.size].transpose(1, 0, 2))
        attend_kernels.attend(
            queries, far, keys, values, s.size, places, numbers, self.turns[positions], starts, s.interleaved, s.gated,
            s.bounded, positions, RECENT, s.window, weight, output, 0, HEADS,
        )  # fmt: skip
        return output

    def expected(self) -> Numbers:
        """The same by plain sums."""
        s, found = self.shape, np.empty(self.rest.shape)
        for head, t, group in np.ndindex(*self.rest.shape[:3]):
            position = self.positions[t]
            own = position // s.size
            weights, values = [np.exp(np.float64(self.weight[head, t, group]))], [self.rest[head, t, group]]
            for number in self.numbers[head, t]:
                if number < 0:
                    continue
                distant = number < own - RECENT
                query = self.queries[head, t, group].astype(np.float64)
                seen = self.turned(query, position - number * s.size)
                if s.bounded and distant:
                    seen = self.far[head, t, group].astype(np.float64)
                at = (number * HEADS + head) * s.size
                mass = np.exp(self.keys[at : at + s.size] @ seen)
                places = number * s.size + np.arange(s.size)
                mass[(places > position) | (not distant) & (places <= position - s.window)] = 0
                if s.gated:
                    landmark, mass[-1] = mass[-1], 0
                    if number != own:
                        mass *= landmark / mass.sum()
                weights += list(mass)
                values += list(self.values[at : at + s.size])
            found[head, t, group] = np.array(weights) @ np.array(values, np.float64) / np.sum(weights)
        return found

    def turned(self, query: Numbers, distance: int) -> Numbers:
        """A query (D,) as a key sees it from so far away."""
        s = self.shape
        of_pair = np.arange(s.pairs)
        first, second = (2 * of_pair, 2 * of_pair + 1) if s.interleaved else (of_pair, of_pair + s.pairs)
        angles, turned = distance * 3.0**-of_pair, query.copy()
        turned[first] = query[first] * np.cos(angles) - query[second] * np.sin(angles)
        turned[second] = query[second] * np.cos(angles) + query[first] * np.sin(angles)
        return turned


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_are_attended_to_as_by_plain_sums(name: str) -> None:
    case = Case(SHAPES[name])
    np.testing.assert_allclose(case.attended(), case.expected(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_a_query_is_answered_alone_as_among_others_to_the_last_bit(name: str) -> None:
    """And places where nothing is read change nothing."""
    case = Case(SHAPES[name], seed=1)
    together = case.attended()
    for t in range(len(case.positions)):
        np.testing.assert_array_equal(case.attended(rows=slice(t, t + 1))[:, 0], together[:, t])
    nothing = np.full((*case.numbers.shape[:2], 17), -1)
    np.testing.assert_array_equal(case.attended(np.concatenate((nothing, case.numbers), axis=2)), together)


@pytest.mark.parametrize("short", [True, False], ids=["bf16", "fp32"])
def test_a_block_far_below_others_weighs_nothing(short: bool) -> None:
    """Its weights would be numbers that are too small to be exact."""
    case = Case(replace(SHAPES["gated"], short=short))
    case.queries *= 8
    found = case.attended()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, case.expected(), rtol=2e-3, atol=2e-4)
