"""Landmarks in an order of likeness, and the choice by tiles of them, against plain NumPy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import BlockIndex, ByRow, IndexShape, Meter, Summary, landmark_kernels, stretches
from cache.centred import Centred
from cache.packed import Packed
from cache.rows import Rows
from cache.stretches import Stretch
from tests.cache.scarce import Scarce
from tests.pretended import CARD, Card

HEADS, WIDTH, FIRST, STRETCH = 2, 32, 64, 256
Integers = NDArray[np.int64]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "STRETCH", STRETCH)


def landmarks(count: int, seed: int = 0, topics: int = 40) -> Tensor:
    """Of some topics, which come in any order (heads, count, width)."""
    generator = torch.Generator().manual_seed(seed)
    of_topics = 2 * torch.randn(HEADS, topics, WIDTH, generator=torch.Generator().manual_seed(7))
    which = torch.randint(topics, (count,), generator=generator)
    return 3 + of_topics[:, which] + torch.randn(HEADS, count, WIDTH, generator=generator)


def queries(count: int, seed: int = 1) -> Tensor:
    return torch.randn(HEADS, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def kept(rows: Tensor, storage: type[Rows] = ByRow) -> Centred:
    vectors = Centred(HEADS, WIDTH, storage)
    vectors.add(rows)
    return vectors


def differences(vectors: Centred) -> Tensor:
    """What is kept of the rows behind the first ones, in double precision."""
    return vectors._others.rows(vectors.count - FIRST).double()


def tiles_of(rows: Tensor) -> list[list[int]]:
    """Which of the rows (S, D) should be tiles."""
    parts = [list(range(len(rows)))]
    while len(parts[0]) > 16:
        parts = [half for part in parts for half in halves(rows, part)]
    return parts


def halves(rows: Tensor, part: list[int]) -> list[list[int]]:
    """By the direction of the furthest row, twice taken by the rows' scatter."""
    off = rows[part] - rows[part].mean(0)
    way = off[off.square().sum(1).argmax()]
    for _ in range(2):
        way = off.T @ (off @ (way / way.norm()))
    along = (rows[part] @ way).tolist()
    low = sorted(range(len(part)), key=lambda i: along[i])[: len(part) // 2]
    return [[n for i, n in enumerate(part) if (i in low) == lower] for lower in (True, False)]


def test_rows_that_scatter_together_lie_together() -> None:
    vectors = kept(landmarks(FIRST + 3 * STRETCH + 100))
    rows = differences(vectors)
    assert len(vectors.stretches.all) == 3
    for place, stretch in enumerate(vectors.stretches.all):
        mine = rows[:, place * STRETCH : (place + 1) * STRETCH]
        for head in range(HEADS):
            found = (stretch.numbers[head] - FIRST - place * STRETCH).tolist()
            assert found == tiles_of(mine[head])
        inside = rows[torch.arange(HEADS)[:, None, None], (stretch.numbers - FIRST).long()]  # (H, tiles, 16, D)
        off = inside - inside.mean(2, keepdim=True)
        assert (
            off.square().sum() < 0.7 * (mine.unflatten(1, (-1, 16)) - inside.mean((1, 2))[:, None, None]).square().sum()
        )
        assert stretch.rows is not None
        assert torch.equal(stretch.rows.rows(STRETCH), inside.flatten(1, 2).float()), "the same bits"
        means = inside.mean(2).float()
        assert ((stretch.means.rows(STRETCH // 16) - means).abs() <= means.abs().amax(-1, keepdim=True) / 13).all()
        squares = off.square().sum(-1)
        reaches = (1.5 * squares.mean(-1).sqrt() + squares.amax(-1).sqrt()) / WIDTH**0.5
        torch.testing.assert_close(stretch.reaches, reaches.float())


def test_what_is_all_the_same_keeps_its_order() -> None:
    (stretch,) = kept(landmarks(1)[:, [0] * (FIRST + STRETCH)]).stretches.all
    assert torch.equal(stretch.numbers[0].flatten(), torch.arange(FIRST, FIRST + STRETCH, dtype=torch.int32))
    assert (stretch.reaches < 1e-6).all()


def same(one: Centred, other: Centred) -> bool:
    both = zip(one.stretches.all, other.stretches.all, strict=True)
    return all(torch.equal(mine, its) for pair in both for mine, its in zip(*map(told, pair), strict=True))


def told(stretch: Stretch) -> list[Tensor]:
    """All that is kept of a stretch."""
    parts = [stretch.numbers, stretch.reaches]
    for rows in (stretch.rows, stretch.means):
        assert isinstance(rows, ByRow)
        parts += [torch.from_numpy(rows.words), torch.from_numpy(rows.scales)]
    return parts


@pytest.mark.parametrize("parts", [[FIRST + 700], [10, 54, 255, 1, 300, 144], [FIRST + 511, 1, 188]])
def test_stretches_are_the_same_however_rows_came(parts: list[int]) -> None:
    rows = landmarks(FIRST + 700)
    vectors, whole = Centred(HEADS, WIDTH, ByRow), kept(rows)
    for part in rows.split(parts, dim=1):
        vectors.add(part)
    assert same(vectors, whole)
    again = Centred(HEADS, WIDTH, ByRow)
    for part in np.split(whole.pack(0, FIRST + 700), np.cumsum(parts)[:-1]):
        again.unpack(part)
    assert same(again, whole)


@pytest.mark.parametrize("pieces", range(5))
def test_landmarks_whose_stretch_has_no_room_are_not_there(pieces: int) -> None:
    rows, slab = landmarks(FIRST + 700), Scarce(0)
    shape = IndexShape((WIDTH,), rounded=True, centred=True, tiled=True)
    index, whole = BlockIndex(HEADS, shape, slab=slab), kept(rows)
    index.add(Summary(rows[:, : FIRST + 200, None]))
    slab.left, others = pieces, Summary(rows[:, FIRST + 200 :, None])
    with pytest.raises(MemoryError):
        index.add(others)
    assert (index.count, index.stretches.count) == (FIRST + 200, 0)
    slab.left = 100
    index.add(others)
    (mine,) = index._landmarks
    assert isinstance(mine, Centred)
    assert same(mine, whole)
    np.testing.assert_array_equal(index.pack(0, FIRST + 700), whole.pack(0, FIRST + 700))


@pytest.mark.parametrize("taken", [10, FIRST, FIRST + STRETCH - 1, FIRST + STRETCH, FIRST + 700])
def test_forks_share_whole_stretches_and_go_on_with_their_own(taken: int) -> None:
    rows, others = landmarks(FIRST + 800), landmarks(700, seed=3)
    parent = kept(rows)
    fork = parent.fork(taken)
    shared = max(0, taken - FIRST) // STRETCH
    assert [a is b for a, b in zip(fork.stretches.all, parent.stretches.all, strict=False)] == [True] * shared
    fork.add(others)
    assert same(fork, kept(torch.cat((rows[:, :taken], others), 1)))
    assert len(parent.stretches.all) == 3


def test_their_memory_is_counted_while_somebody_has_them() -> None:
    meters = [Meter(), Meter()]
    few, more = (Centred(HEADS, WIDTH, ByRow, meter) for meter in meters)
    few.add(landmarks(FIRST + STRETCH - 1))
    more.add(landmarks(FIRST + STRETCH))
    each = HEADS * (WIDTH // 2 + 4)
    copy = STRETCH * (each + 4 * HEADS) + STRETCH // 16 * (each + 4 * HEADS)
    assert meters[1].bytes - meters[0].bytes == each + copy
    fork = more.fork(FIRST + STRETCH)
    del more
    assert meters[1].bytes > copy
    del fork
    assert meters[1].bytes == 0


def test_a_device_has_the_same_tiles() -> None:
    rows, asked = landmarks(FIRST + 600), queries(3)
    here = kept(rows).stretches
    with Card():
        vectors = Centred(HEADS, WIDTH, Packed, device=CARD)
        vectors.add(rows.to(CARD))
        there = vectors.stretches
        assert there.all[0].rows is None
        assert torch.equal(there.numbers.cpu(), here.numbers)
        likely = there.likely(asked.to(CARD)).cpu()
    torch.testing.assert_close(here.likely(asked), likely, atol=0.02 * float(likely.abs().max()), rtol=0)


def chosen_of(vectors: Centred, asked: Tensor, sinks: int, ends: list[int], fetch: int) -> list[list[set[int]]]:
    """What each head's queries should choose, by plain loops over tiles."""
    likely, exact = vectors.stretches.likely(asked).numpy(), vectors.scores(asked, max(ends)).numpy()
    numbers, found = vectors.stretches.numbers.tolist(), [list[set[int]]() for _ in range(HEADS)]
    for head in range(HEADS):
        for t, end in enumerate(ends):
            tiles = max(0, end - FIRST) // STRETCH * STRETCH // 16
            best = sorted(range(tiles), key=lambda tile: -likely[head, t, tile])[: max(tiles // 8, 4 * fetch)]
            seen = {*range(FIRST), *range(FIRST + 16 * tiles, end), *(n for tile in best for n in numbers[head][tile])}
            choosable = [n for n in seen if sinks <= n < end]
            found[head].append(set(sorted(choosable, key=lambda n: -exact[head, t, n])[:fetch]))
    return found


def choose(vectors: Centred, asked: Tensor, sinks: int, ends: list[int], fetch: int, most: int) -> Integers:
    return choose_together([vectors], asked, sinks, [ends], fetch, most)


def choose_together(
    sessions: list[Centred], asked: Tensor, sinks: int, each_ends: list[list[int]], fetch: int, most: int
) -> Integers:
    """By one call; queries of one session after the other's."""
    ends = [end for mine in each_ends for end in mine]
    blocks = np.full((HEADS, len(ends), fetch), -7)
    room = np.empty((HEADS, landmark_kernels.choose_rows(1), min(most, max(ends)) // 16 * 16 + 80), np.float32)
    whose: list[Integers] = [np.cumsum([0, *map(len, each_ends)])]
    for tables in ([each.table for each in sessions], [each.stretches.table for each in sessions]):
        whose += [np.concatenate(tables), np.cumsum([0, *map(len, tables)])]
    landmark_kernels.choose_landmarks(asked.numpy(), *whose, sinks, np.array(ends), most, blocks, room, 0, HEADS)
    return blocks


@pytest.mark.parametrize("fetch", [2, 6, 40])
@pytest.mark.parametrize("sinks", [0, 1, 70])
@pytest.mark.parametrize(
    "ends", [[2900], [30, 71, 90, 2500], [100, 319, 320, 321, 575, 576, 1000, 1001, 1002, 2900, 2901]]
)
def test_a_query_chooses_of_the_likeliest_tiles_as_plain_loops_do(fetch: int, sinks: int, ends: list[int]) -> None:
    vectors = kept(landmarks(3000))
    fork = vectors.fork(1000)
    fork.add(landmarks(2000, seed=5))
    asked = queries(len(ends))
    for index in (vectors, fork):
        expected = chosen_of(index, asked, sinks, ends, fetch)
        found = choose(index, asked, sinks, ends, fetch, most=0)
        for h in range(HEADS):
            for t, end in enumerate(ends):
                mine = found[h, t]
                assert set(mine[mine >= 0].tolist()) == expected[h][t], (h, t, end)
                exact = index.scores(asked, max(1, end))[h, t].numpy()[mine[mine >= 0]]
                assert (np.diff(exact) <= 1e-4).all(), "the best ones come first"
                assert (mine[: len(expected[h][t])] >= 0).all()


def test_sessions_that_are_asked_together_choose_what_each_chooses_alone() -> None:
    sessions = [kept(landmarks(count, seed)) for seed, count in enumerate((700, 100, 3000, 1500))]
    each_ends, asked = [[330, 700], [90], [2900, 3000], [1490]], queries(6)
    found, start = choose_together(sessions, asked, 1, each_ends, 6, most=0), 0
    for session, ends in zip(sessions, each_ends, strict=True):
        mine = slice(start, start + len(ends))
        alone = choose(session, asked[:, mine].contiguous(), 1, ends, 6, most=0)
        assert np.array_equal(found[:, mine], alone)
        start += len(ends)


def test_few_blocks_are_all_looked_at() -> None:
    """Also where others of the same call have many, and one of few blocks is chosen alone or with others."""
    vectors, ends, asked = kept(landmarks(1000)), [300, 500, 700, 900], queries(4)
    found = choose(vectors, asked, 1, ends, 5, most=600)
    exact, by_tiles = vectors.scores(asked, 900), choose(vectors, asked, 1, ends, 5, most=0)
    for t, end in enumerate(ends):
        best = (exact[:, t, 1:end].topk(5, dim=-1).indices + 1).sort(-1).values
        if end <= 600:
            assert np.array_equal(np.sort(found[:, t]), best.numpy())
        else:
            assert np.array_equal(found[:, t], by_tiles[:, t])
        alone = choose(vectors, asked[:, t : t + 1].contiguous(), 1, [end], 5, most=600)
        assert np.array_equal(alone[:, 0], found[:, t])


def test_what_comes_later_changes_nothing() -> None:
    """A stretch that is whole, but not before a query's end, is not there for it."""
    rows, asked, end = landmarks(FIRST + 2 * STRETCH), queries(1), FIRST + 2 * STRETCH - 1
    early, late = kept(rows[:, :end]), kept(rows)
    assert np.array_equal(choose(early, asked, 1, [end], 6, most=0), choose(late, asked, 1, [end], 6, most=0))


def test_equal_landmarks_fill_what_is_asked_for() -> None:
    """As where a text repeats itself."""
    vectors = kept(landmarks(1)[:, [0] * 700])
    for most in (0, 10_000):
        found = choose(vectors, queries(2), 3, [650, 651], 4, most)
        assert (np.sort(found) >= 3).all()
        assert (found < 650).all()
