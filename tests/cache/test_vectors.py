"""The index: one matrix product over everything that was added, whatever the way it was added or shared."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache import Vectors

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


def storages(index: Vectors) -> list[Tensor]:
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
    seen: list[Tensor] = []
    for start in range(0, 700, 7):
        index.add(everything[:, start : start + 7])
        now = storages(index)
        assert all(old is new for old, new in zip(seen, now, strict=False))
        assert len(now) >= len(seen)
        seen = now
    sizes = [storage.shape[1] for storage in seen]
    assert sizes == sorted(sizes)
    assert len(sizes) < 6, "segments grow, so that there are few of them"
    agrees(index, everything)


def test_segments_stop_growing_at_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.vectors.LARGEST_SEGMENT", 128)
    index = index_of(summaries(600))
    assert max(storage.shape[1] for storage in storages(index)) == 128
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


def test_eight_bits_keep_each_row_to_a_255th_of_its_range() -> None:
    everything = summaries(200) * torch.logspace(-3, 0, 200)[:, None]
    index = Vectors(HEADS, WIDTH, torch.int8)
    for part in everything.split(30, dim=1):
        index.add(part)
    fork = index.fork(150)
    fork.add(torch.zeros(HEADS, 1, WIDTH))
    step = everything.abs().amax(-1) / 127  # (heads, 200)
    for vectors, count in ((index, 200), (fork, 150)):
        rows = torch.cat([rows for _, rows in vectors.parts(count)], dim=1)
        assert ((rows - everything[:, :count]).abs() <= 0.501 * step[:, :count, None]).all()
        torch.testing.assert_close(vectors.scores(QUERIES, count), QUERIES @ rows.mT)
        weights = torch.rand(HEADS, 3, count)
        torch.testing.assert_close(vectors.weigh(weights), weights @ rows)
    assert not fork.scores(QUERIES, 151)[..., -1].any(), "a row of zeros stays one"


@pytest.mark.parametrize("queries", [1, 16, 17])
def test_few_queries_and_many_get_the_same_from_eight_bits(queries: int) -> None:
    """Few go through the kernels, on several threads where there are many rows; many through fp32 rows."""
    generator = torch.Generator().manual_seed(3)
    index = Vectors(HEADS, WIDTH, torch.int8)
    index.add(torch.randn(HEADS, 3000, WIDTH, generator=generator))
    rows = torch.cat([rows for _, rows in index.parts(2900)], dim=1)
    asked = torch.randn(HEADS, queries, WIDTH, generator=generator)
    torch.testing.assert_close(index.scores(asked, 2900), asked @ rows.mT, atol=1e-4, rtol=1e-4)
    weights = torch.rand(HEADS, queries, 2900, generator=generator)
    torch.testing.assert_close(index.weigh(weights), weights @ rows, atol=1e-3, rtol=1e-4)


def test_scores_of_half_precision_summaries_come_in_the_queries_precision() -> None:
    everything = summaries(90)
    index = Vectors(HEADS, WIDTH, torch.bfloat16)
    index.add(everything)
    scores = index.scores(QUERIES, 90)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, QUERIES @ everything.bfloat16().float().mT)
