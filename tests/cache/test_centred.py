"""Landmarks that are kept as what they differ in, against plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import ByRow, Vectors, kernels
from cache.centred import Centred
from cache.packed import Packed
from cache.rows import Rows
from tests.pretended import CARD, Card

HEADS, WIDTH, FIRST = 2, 32, 64


def landmarks(count: int, seed: int = 0) -> Tensor:
    """Much alike, as those of one token are (heads, count, width)."""
    generator = torch.Generator().manual_seed(seed)
    alike = 3 * torch.randn(HEADS, 1, WIDTH, generator=torch.Generator().manual_seed(7))
    return alike + torch.randn(HEADS, count, WIDTH, generator=generator)


def queries(count: int, seed: int = 1) -> Tensor:
    return torch.randn(HEADS, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def four(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as whole numbers from -7 to 7, and their scales (…, 1)."""
    scales = rows.abs().amax(-1, keepdim=True) / 7
    return (rows / scales).round(), scales


def kept(rows: Tensor) -> Tensor:
    """What should be kept of rows (H, N, D)."""
    numbers, scales = four(rows[:, :FIRST])
    early = numbers * scales
    centre = early.double().mean(1, keepdim=True).float()
    numbers, scales = four(rows[:, FIRST:] - centre)
    return torch.cat((early, numbers * scales + centre), 1)


@pytest.mark.parametrize("storage", [ByRow, Packed])
@pytest.mark.parametrize("parts", [[300], [64, 236], [10, 53, 2, 235], [63, 1, 1, 235], [65, 235]])
def test_what_is_kept_is_the_difference_from_the_mean_of_the_first(storage: type[Rows], parts: list[int]) -> None:
    rows = landmarks(300)
    vectors = Centred(HEADS, WIDTH, storage)
    for part in rows.split(parts, dim=1):
        vectors.add(part)
    torch.testing.assert_close(vectors.rows(300), kept(rows))
    for first, last in ((0, 300), (10, 60), (3, 64), (64, 65), (30, 200), (100, 101)):
        assert torch.equal(vectors.rows(last, first), vectors.rows(300)[:, first:last])
    asked = queries(3)
    for count in (1, 64, 65, 300):
        expected = asked @ vectors.rows(count).mT
        torch.testing.assert_close(
            vectors.scores(asked, count), expected, atol=0.02 * float(expected.abs().max()), rtol=0
        )


def test_the_centre_leaves_more_of_the_bits_to_what_tells_landmarks_apart() -> None:
    rows = landmarks(300)
    vectors, plain = Centred(HEADS, WIDTH, ByRow), Vectors(HEADS, WIDTH, ByRow)
    vectors.add(rows)
    plain.add(rows)
    off = [(each.rows(300) - rows)[:, FIRST:].square().mean() for each in (vectors, plain)]
    assert off[0] < 0.4 * off[1]


@pytest.mark.parametrize("taken", [10, 63, 64, 65, 128, 200])
def test_forks_go_on_as_if_they_had_read_it_all(taken: int) -> None:
    rows, others = landmarks(250), landmarks(100, seed=3)
    parent = Centred(HEADS, WIDTH, ByRow)
    parent.add(rows)
    fork = parent.fork(taken)
    fork.add(others)
    alone = Centred(HEADS, WIDTH, ByRow)
    alone.add(torch.cat((rows[:, :taken], others), 1))
    assert torch.equal(fork.rows(taken + 100), alone.rows(taken + 100))
    again = Centred(HEADS, WIDTH, ByRow)
    for first, last in ((0, 7), (7, 70), (70, taken + 100)):
        again.unpack(fork.pack(first, last))
    assert again.count == fork.count
    assert torch.equal(again.rows(taken + 100), fork.rows(taken + 100))
    assert torch.equal(parent.rows(250), kept_by(rows))


def kept_by(rows: Tensor) -> Tensor:
    vectors = Centred(HEADS, WIDTH, ByRow)
    vectors.add(rows)
    return vectors.rows(rows.shape[1])


def test_a_device_keeps_the_same() -> None:
    rows, asked = landmarks(200), queries(3)
    here = Centred(HEADS, WIDTH, ByRow)
    here.add(rows)
    with Card():
        there = Centred(HEADS, WIDTH, Packed, device=CARD)
        there.add(rows.to(CARD))
        assert (there.pack(0, 200) == here.pack(0, 200)).all()
        found = there.scores(asked.to(CARD), 190).cpu()
    torch.testing.assert_close(here.scores(asked, 190), found, atol=0.02 * float(found.abs().max()), rtol=0)


def test_products_do_not_depend_on_what_comes_later() -> None:
    """To the last bit: who sees the first landmarks alone does not know that there is a centre."""
    asked, ends = queries(2), np.array([60, 150])
    early, late = (Centred(HEADS, WIDTH, ByRow) for _ in range(2))
    early.add(landmarks(200)[:, :60])
    late.add(landmarks(200))
    numbers, starts, sizes = np.empty((2, WIDTH), np.int8), np.empty(2, np.int32), np.empty(2, np.float32)
    kernels("four_bit").round_queries(asked[1].numpy(), numbers, starts, sizes)

    def products(vectors: Centred, count: int) -> NDArray[np.float32]:
        mine, room = (numbers[:count], starts[:count], sizes[:count]), np.zeros((count, 256), np.float32)
        kernels("stretch").multiply_all(asked[1, :count].numpy(), vectors.table, 1, *mine, room, ends[:count])
        return room

    assert np.array_equal(products(early, 1)[0, :60], products(late, 2)[0, :60])
    exact = late.scores(asked, 150)[1, 1]
    apart = exact - torch.from_numpy(products(late, 2)[1, :150])  # the same for all: the product with the centre
    torch.testing.assert_close(apart, apart[:1].expand(150), atol=1e-3, rtol=0)
