"""Landmarks that are kept as what they differ in, and the choice after a glance, against plain NumPy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import ByRow, Vectors, kernels, landmark_kernels
from cache.centred import Centred
from cache.packed import Packed
from cache.planes import DOUBT, MIDDLE, Planes, coarse
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
    """Rows as whole numbers from -7 to 7, and their scales (…, 1), the next ones of 8 bits above."""
    scales = rows.abs().amax(-1, keepdim=True) / 7
    parts, powers = torch.frexp(scales)
    scales = torch.ldexp((parts * 256).ceil() / 256, powers)
    return (rows / scales).round(), scales


def kept(rows: Tensor) -> Tensor:
    """What should be kept of rows (H, N, D)."""
    numbers, scales = four(rows[:, :FIRST])
    early = numbers * scales
    centre = early.double().mean(1, keepdim=True).float()
    numbers, scales = four(rows[:, FIRST:] - centre)
    return torch.cat((early, numbers * scales + centre), 1)


@pytest.mark.parametrize("storage", [Planes, Packed])
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
    vectors, plain = Centred(HEADS, WIDTH, Planes), Vectors(HEADS, WIDTH, ByRow)
    vectors.add(rows)
    plain.add(rows)
    off = [(each.rows(300) - rows)[:, FIRST:].square().mean() for each in (vectors, plain)]
    assert off[0] < 0.4 * off[1]


@pytest.mark.parametrize("taken", [10, 63, 64, 65, 128, 200])
def test_forks_go_on_as_if_they_had_read_it_all(taken: int) -> None:
    rows, others = landmarks(250), landmarks(100, seed=3)
    parent = Centred(HEADS, WIDTH, Planes)
    parent.add(rows)
    fork = parent.fork(taken)
    fork.add(others)
    alone = Centred(HEADS, WIDTH, Planes)
    alone.add(torch.cat((rows[:, :taken], others), 1))
    assert torch.equal(fork.rows(taken + 100), alone.rows(taken + 100))
    again = Centred(HEADS, WIDTH, Planes)
    for first, last in ((0, 7), (7, 70), (70, taken + 100)):
        again.unpack(fork.pack(first, last))
    assert again.count == fork.count
    assert torch.equal(again.rows(taken + 100), fork.rows(taken + 100))
    assert torch.equal(parent.rows(250), kept_by(rows))


def kept_by(rows: Tensor) -> Tensor:
    vectors = Centred(HEADS, WIDTH, Planes)
    vectors.add(rows)
    return vectors.rows(rows.shape[1])


def test_a_device_keeps_the_same() -> None:
    rows, asked = landmarks(200), queries(3)
    here = Centred(HEADS, WIDTH, Planes)
    here.add(rows)
    with Card():
        there = Centred(HEADS, WIDTH, Packed, device=CARD)
        there.add(rows.to(CARD))
        assert (there.pack(0, 200) == here.pack(0, 200)).all()
        found = [part.cpu() for part in there.glances(asked.to(CARD), 190)]
    for mine, its in zip(here.glances(asked, 190), found, strict=True):
        torch.testing.assert_close(mine, its, atol=0.02 * float(its.abs().max()), rtol=0)


@pytest.mark.parametrize("width", [16, 32, 48, 128])
@pytest.mark.parametrize("amount", [1, 2, 5, 8, 15])
def test_halves_say_what_their_bits_say(width: int, amount: int) -> None:
    generator = torch.Generator().manual_seed(2)
    rows, asked = torch.randn(1, 160, width, generator=generator), torch.randn(1, amount, width, generator=generator)
    planes = Planes(1, 160, width)
    planes.put(0, coarse(rows))
    numbers, scales = four(rows)
    assert torch.equal(planes.rows(160), numbers * scales)
    size = asked.abs().amax(-1, keepdim=True) / 127
    whole = (asked / size).round()
    found = torch.empty(1, amount, 150)
    planes.products(asked, 150, found, 0, slice(0, 1))
    torch.testing.assert_close(found, (whole * size) @ (numbers * scales)[:, :150].mT, atol=1e-4, rtol=1e-5)
    upper = 4 * ((numbers + 8) / 4).floor() - MIDDLE
    likely, doubt = planes.glances(asked, 150)
    torch.testing.assert_close(likely, (whole * size) @ (upper * scales)[:, :150].mT, atol=1e-4, rtol=1e-5)
    expected = DOUBT * whole.norm(dim=-1, keepdim=True) * size * scales[:, :150].mT
    torch.testing.assert_close(doubt, expected, atol=1e-5, rtol=1e-5)


def chosen_of(vectors: Centred, asked: Tensor, sinks: int, ends: list[int], fetch: int) -> list[list[set[int]]]:
    """What each head's queries should choose, by plain loops over tiles."""
    likely, doubt = (part.numpy() for part in vectors.glances(asked, max(ends)))
    exact = vectors.scores(asked, max(ends)).numpy()
    return [
        [chosen_by(likely[h, t], doubt[h, t], exact[h, t], sinks, end, fetch) for t, end in enumerate(ends)]
        for h in range(HEADS)
    ]


def chosen_by(
    likely: NDArray[np.float32],
    doubt: NDArray[np.float32],
    exact: NDArray[np.float32],
    sinks: int,
    end: int,
    fetch: int,
) -> set[int]:
    glanced = range(max(sinks, FIRST), end)
    best = sorted((likely[n - FIRST] for n in glanced), reverse=True)
    bar = best[fetch - 1] if len(best) >= fetch else -np.inf
    tiles = {n // 16 for n in glanced if likely[n - FIRST] + doubt[n - FIRST] >= bar}
    closely = [n for n in range(sinks, end) if n < FIRST or n // 16 in tiles]
    return set(sorted(closely, key=lambda n: -exact[n])[:fetch])


def choose(vectors: Centred, asked: Tensor, sinks: int, ends: list[int], fetch: int, most: int) -> NDArray[np.int64]:
    blocks = np.full((HEADS, len(ends), fetch), -7)
    table = vectors.table
    room = np.empty((HEADS, landmark_kernels.choose_rows(1), min(most, max(ends)) // 16 * 16 + 80), np.float32)
    whose = np.array([0, len(ends)]), table, np.array([0, len(table)])
    landmark_kernels.choose_landmarks(asked.numpy(), *whose, sinks, np.array(ends), most, blocks, room, 0, HEADS)
    return blocks


@pytest.mark.parametrize("sinks", [0, 1, 70])
@pytest.mark.parametrize("ends", [[2900], [71, 90, 2500], [100, 101, 500, 900, 1000, 1001, 1002, 2900, 2901]])
def test_a_glance_chooses_as_plain_loops_do(sinks: int, ends: list[int]) -> None:
    vectors = Centred(HEADS, WIDTH, Planes)
    vectors.add(landmarks(3000))
    fork = vectors.fork(1000)
    fork.add(landmarks(2000, seed=5))
    asked = queries(len(ends))
    for index in (vectors, fork):
        expected = chosen_of(index, asked, sinks, ends, 6)
        found = choose(index, asked, sinks, ends, 6, most=0)
        for h in range(HEADS):
            for t, end in enumerate(ends):
                mine = found[h, t]
                assert set(mine[mine >= 0].tolist()) == expected[h][t], (h, t, end)
                exact = index.scores(asked, end)[h, t].numpy()[mine[mine >= 0]]
                assert (np.diff(exact) <= 1e-4).all(), "the best ones come first"
                assert (mine[: len(expected[h][t])] >= 0).all()


def test_products_do_not_depend_on_what_comes_later() -> None:
    """To the last bit: who sees the first landmarks alone does not know that there is a centre."""
    asked, ends = queries(2), np.array([60, 150])
    early, late = (Centred(HEADS, WIDTH, Planes) for _ in range(2))
    early.add(landmarks(200)[:, :60])
    late.add(landmarks(200))
    numbers, starts, sizes = np.empty((2, WIDTH), np.int8), np.empty(2, np.int32), np.empty(2, np.float32)
    kernels("four_bit").round_queries(asked[1].numpy(), numbers, starts, sizes)

    def products(vectors: Centred, count: int) -> NDArray[np.float32]:
        mine, room = (numbers[:count], starts[:count], sizes[:count]), np.zeros((count, 256), np.float32)
        kernels("glance").multiply_all(asked[1, :count].numpy(), vectors.table, 1, *mine, room, ends[:count])
        return room

    assert np.array_equal(products(early, 1)[0, :60], products(late, 2)[0, :60])
    exact = late.scores(asked, 150)[1, 1]
    apart = exact - torch.from_numpy(products(late, 2)[1, :150])  # the same for all: the product with the centre
    torch.testing.assert_close(apart, apart[:1].expand(150), atol=1e-3, rtol=0)


def test_few_blocks_are_all_looked_at_closely() -> None:
    """Also where others of the same call have many, and one of few blocks is chosen alone or with others."""
    vectors = Centred(HEADS, WIDTH, Planes)
    vectors.add(landmarks(1000))
    ends, asked = [300, 500, 700, 900], queries(4)
    found = choose(vectors, asked, 1, ends, 5, most=600)
    exact, glanced = vectors.scores(asked, 900), choose(vectors, asked, 1, ends, 5, most=0)
    for t, end in enumerate(ends):
        best = (exact[:, t, 1:end].topk(5, dim=-1).indices + 1).sort(-1).values
        if end <= 600:
            assert np.array_equal(np.sort(found[:, t]), best.numpy())
        else:
            assert np.array_equal(found[:, t], glanced[:, t])
        alone = choose(vectors, asked[:, t : t + 1].contiguous(), 1, [end], 5, most=600)
        assert np.array_equal(alone[:, 0], found[:, t])


def test_equal_landmarks_are_all_in_doubt() -> None:
    """As where a text repeats itself: the first ones win, whatever the way."""
    vectors = Centred(HEADS, WIDTH, Planes)
    vectors.add(landmarks(1)[:, [0] * 700])
    for most in (0, 10_000):
        found = choose(vectors, queries(2), 3, [650, 651], 4, most)
        assert (np.sort(found) >= 3).all()
        assert (found < 650).all()
