"""The index: one matrix product over everything that was added, whatever the way it was added or shared."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache import ByChannel, ByRow, Vectors
from cache.rows import Rows

HEADS, WIDTH = 2, 6


def summaries(count: int, seed: int = 0) -> Tensor:
    """Random summaries (heads, count, width)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(HEADS, count, WIDTH, generator=generator)


QUERIES = summaries(3, seed=99)


def index_of(added: Tensor) -> Vectors:
    index = Vectors(HEADS, WIDTH)
    index.add(added)
    return index


def agrees(index: Vectors, expected: Tensor) -> None:
    """The index scores like a plain product with `expected` (heads, count, width), also when asked for less."""
    assert index.count == expected.shape[1]
    for count in {0, 1, 64, 65, expected.shape[1] // 2, expected.shape[1]}:
        if count <= expected.shape[1]:
            torch.testing.assert_close(index.scores(QUERIES, count), QUERIES @ expected[:, :count].mT)


def storages(index: Vectors) -> list[Rows]:
    return [segment.storage for segment in index._segments]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 150), max_size=8))
def test_scores_are_a_plain_product_whatever_the_pattern_of_adding(counts: list[int]) -> None:
    everything = summaries(sum(counts))
    index = Vectors(HEADS, WIDTH)
    for part in everything.split(counts, dim=1) if counts else ():
        index.add(part)
    agrees(index, everything)


def test_growth_never_copies() -> None:
    index = Vectors(HEADS, WIDTH)
    everything = summaries(700)
    seen: list[Rows] = []
    for start in range(0, 700, 7):
        index.add(everything[:, start : start + 7])
        now = storages(index)
        assert all(old is new for old, new in zip(seen, now, strict=False))
        assert len(now) >= len(seen)
        seen = now
    sizes = [storage.capacity for storage in seen]
    assert sizes == sorted(sizes)
    assert len(sizes) < 6, "segments grow, so that there are few of them"
    agrees(index, everything)


def test_segments_stop_growing_at_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.vectors.LARGEST_SEGMENT", 128)
    index = index_of(summaries(600))
    assert max(storage.capacity for storage in storages(index)) == 128
    agrees(index, summaries(600))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_forks_share_the_past_and_diverge_without_touching_each_other(data: st.DataObject) -> None:
    truth = [summaries(data.draw(st.integers(0, 200)))]
    indexes = [index_of(truth[0])]
    for step in range(data.draw(st.integers(1, 8))):
        chosen = data.draw(st.integers(0, len(indexes) - 1))
        if data.draw(st.booleans()):
            kept = data.draw(st.integers(0, indexes[chosen].count))
            indexes.append(indexes[chosen].fork(kept))
            truth.append(truth[chosen][:, :kept])
        else:
            more = summaries(data.draw(st.integers(0, 100)), seed=step + 1)
            indexes[chosen].add(more)
            truth[chosen] = torch.cat((truth[chosen], more), dim=1)
    for index, expected in zip(indexes, truth, strict=True):
        agrees(index, expected)


def test_a_fork_shares_storage() -> None:
    parent = index_of(summaries(100))
    fork = parent.fork(70)
    fork.add(summaries(5, seed=1))
    assert storages(fork)[0] is storages(parent)[0]
    assert storages(fork)[-1] is not storages(parent)[-1]


def test_more_than_it_holds_is_an_error_not_noise() -> None:
    index = index_of(summaries(10))
    with pytest.raises(AssertionError):
        index.scores(QUERIES, 11)
    with pytest.raises(AssertionError):
        index.fork(11)


KINDS = pytest.mark.parametrize("kind", [ByRow, ByChannel])
WIDTHS = pytest.mark.parametrize("width", [6, 33, 64, 80])


@KINDS
@WIDTHS
def test_four_bits_keep_each_row_to_a_15th_of_its_range(kind: type[Rows], width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    everything = torch.randn(HEADS, 700, width, generator=generator) * torch.logspace(-3, 0, 700)[:, None]
    vectors = Vectors(HEADS, width, kind)
    for part in everything.split([1, 2, 30, 64, 3, 400, 200], dim=1):
        vectors.add(part)
    step = everything.abs().amax(-1) / 7  # (heads, rows)
    assert ((vectors.rows(700) - everything).abs() <= 0.501 * step[..., None]).all()
    fork = vectors.fork(333)
    fork.add(torch.zeros(HEADS, 1, width))
    assert torch.equal(fork.rows(334)[:, :333], vectors.rows(333))
    assert not fork.rows(334)[:, 333].any(), "a row of zeros stays one"


@KINDS
@WIDTHS
@pytest.mark.parametrize("queries", [1, 3, 4, 9, 100])
def test_four_bits_multiply_and_add_up_as_the_rows_that_they_keep(kind: type[Rows], width: int, queries: int) -> None:
    """Also where a storage ends inside a slice, where a fork goes on, and on several threads."""
    generator = torch.Generator().manual_seed(3)
    vectors = Vectors(HEADS, width, kind)
    vectors.add(torch.randn(HEADS, 3000, width, generator=generator))
    fork = vectors.fork(75)
    fork.add(torch.randn(HEADS, 300, width, generator=generator))
    for index, count in ((vectors, 2901), (fork, 370), (fork, 70)):
        rows = index.rows(count)
        asked = torch.randn(HEADS, queries, width, generator=generator)
        expected = asked @ rows.mT
        torch.testing.assert_close(
            index.scores(asked, count), expected, atol=5e-5 * float(expected.abs().max()), rtol=0
        )
        weights = torch.rand(HEADS, queries, count, generator=generator) ** 9
        expected = weights @ rows
        torch.testing.assert_close(index.weigh(weights), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", [Rows, ByRow, ByChannel])
@pytest.mark.parametrize("width", [6, 7, 64])
def test_rows_come_back_from_their_bytes_as_they_were(kind: type[Rows], width: int) -> None:
    everything = torch.randn(HEADS, 300, width, generator=torch.Generator().manual_seed(2))
    vectors, again = Vectors(HEADS, width, kind), Vectors(HEADS, width, kind)
    vectors.add(everything)
    for first, last in ((0, 5), (5, 130), (130, 300)):
        packed = vectors.pack(first, last)
        assert packed.shape == (last - first, vectors.row_bytes)
        again.unpack(packed)
    assert torch.equal(again.rows(300), vectors.rows(300))
