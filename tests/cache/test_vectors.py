"""The index: one matrix product over everything that was added, whatever the way it was added or shared."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache import BlockIndex, ByChannel, ByRow, IndexShape, Meter, Summary, Vectors
from cache.packed import Packed
from cache.rows import Rows
from tests.pretended import CARD, Card

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


KINDS = pytest.mark.parametrize("kind", [ByRow, ByChannel, Packed])
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


def rounded(numbers: Tensor) -> Tensor:
    """Numbers that share a scale in the last dimension, in 127 steps up and down."""
    peak = numbers.abs().amax(-1, keepdim=True).clamp(min=1e-35)
    return (numbers * (127 / peak)).round() * (peak / 127)


def weighed(weights: Tensor, rows: Tensor) -> Tensor:
    """The oracle of sums in 8 bits: weights (H, Q, N) times the scales of rows (H, N, D), each 64 rounded together."""
    scales = (rows.abs().amax(-1) / 7)[:, None]  # (H, 1, N)
    parts = [rounded(part) for part in (weights * scales).split(64, dim=-1)]
    return torch.cat(parts, dim=-1) @ (rows / scales.mT).round()


def near(found: Tensor, expected: Tensor) -> None:
    """Equal but for a number here and there that lies between two steps and was rounded to the other one."""
    off = (found - expected).abs() / expected.abs().max()
    assert (off > 2e-6).float().mean() < 0.05
    assert off.max() < 5e-3


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
        weights = torch.rand(HEADS, queries, count, generator=generator) ** 9
        near(index.scores(asked, count), (rounded(asked) if kind is ByRow else asked) @ rows.mT)
        near(index.weigh(weights), weighed(weights, rows) if kind is ByChannel else weights @ rows)


@pytest.mark.parametrize("taken", [1, 63, 64, 100, 128, 700])
def test_sums_do_not_depend_on_who_shares_storage(taken: int) -> None:
    """A fork goes on where the parent's storage has a border of 64 rows, so the same weights are rounded together."""
    everything = torch.randn(HEADS, 900, 32, generator=torch.Generator().manual_seed(4))
    whole = Vectors(HEADS, 32, ByChannel)
    whole.add(everything)
    fork = whole.fork(taken)
    fork.add(everything[:, taken:])
    weights = torch.rand(HEADS, 3, 900, generator=torch.Generator().manual_seed(5)) ** 4
    assert torch.equal(fork.rows(900), whole.rows(900))
    near(fork.weigh(weights), whole.weigh(weights))
    assert all(sum(s.count for s in fork.segments[:i]) % 64 == 0 for i in range(len(fork.segments)))


@pytest.mark.parametrize("kind", [Rows, ByRow, ByChannel, Packed])
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


@pytest.mark.parametrize("width", [6, 7, 64])
def test_packed_rows_are_those_of_the_kernels(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """To the bit, also as bytes; products agree but for the kernels' rounding of queries."""
    monkeypatch.setattr("cache.packed.PIECE_BYTES", 100 * HEADS * width * 4)  # several pieces
    generator = torch.Generator().manual_seed(5)
    everything = torch.randn(HEADS, 700, width, generator=generator)
    packed, *others = (Vectors(HEADS, width, kind) for kind in (Packed, ByRow, ByChannel))
    for vectors in (packed, *others):
        vectors.add(everything)
    asked = torch.randn(HEADS, 3, width, generator=generator)
    for other in others:
        assert torch.equal(packed.rows(700), other.rows(700))
        assert (packed.pack(3, 650) == other.pack(3, 650)).all()
    agree(packed.scores(asked, 601), others[0].scores(asked, 601))
    weights = asked.new_ones(HEADS, 3, 601) / 601
    agree(packed.weigh(weights), others[1].weigh(weights))


def agree(found: Tensor, expected: Tensor) -> None:
    """Equal but for factors that one of them rounds to 8 bits."""
    torch.testing.assert_close(found, expected, atol=0.02 * float(expected.abs().max()), rtol=0)


def test_an_index_lies_on_its_device_and_reads_what_the_cpu_packed() -> None:
    generator = torch.Generator().manual_seed(6)
    shape = IndexShape((WIDTH, WIDTH), values=WIDTH, slopes=True, outlying=True, copies=(4, WIDTH), rounded=True)

    def drawn(*sizes: int) -> Tensor:
        return torch.randn(HEADS, 90, *sizes, generator=generator)

    here = BlockIndex(HEADS, shape)
    copies = (drawn(4, WIDTH), drawn(4, WIDTH))
    here.add(Summary(drawn(1, 2 * WIDTH), drawn(WIDTH), (drawn(WIDTH), drawn(WIDTH)), drawn(), copies))
    blocks = torch.randint(81, (HEADS, 3, 5), generator=generator)
    asked = torch.randn(HEADS, 2, 2 * WIDTH, generator=generator)
    weights = torch.rand(HEADS, 2, 80, generator=generator) / 80
    with Card():
        there = BlockIndex(HEADS, shape, device=CARD)
        there.unpack(here.pack(0, 90))
        assert (there.pack(7, 50) == here.pack(7, 50)).all()
        fork = there.fork(81)
        products = fork.products(asked.to(CARD), 80).cpu()
        values = fork.weigh_values(weights.to(CARD), asked[..., :WIDTH].to(CARD)).cpu()
        assert torch.equal(fork.outlying(80).cpu(), here.outlying(80))
        copied = [part.cpu() for part in fork.copied(blocks.to(CARD))]
    for found, expected in zip(copied, here.copied(blocks), strict=True):
        assert torch.equal(found, expected)
    agree(products, here.products(asked, 80))
    agree(values, here.weigh_values(weights, asked[..., :WIDTH]))


def test_a_device_gives_memory_by_the_segment() -> None:
    meter = Meter()
    with Card():
        vectors = Vectors(HEADS, WIDTH, meter=meter, device=CARD)
        vectors.add(torch.ones(HEADS, 3, WIDTH, device=CARD))
    assert meter.bytes == 64 * vectors.row_bytes
    here = Meter()
    few = Vectors(HEADS, WIDTH, meter=here)
    few.add(torch.ones(HEADS, 3, WIDTH))
    assert here.bytes == 3 * few.row_bytes


@pytest.mark.parametrize("storage", [Rows, ByRow, ByChannel, Packed])
def test_picked_rows_are_those_of_each_head(storage: type[Rows]) -> None:
    everything = summaries(150)  # lies in two segments
    index = Vectors(HEADS, WIDTH, storage)
    index.add(everything[:, :40])
    index.add(everything[:, 40:])
    numbers = torch.stack([torch.randperm(150, generator=torch.Generator().manual_seed(s))[:30] for s in range(HEADS)])
    kept = index.rows(150)
    for asked in (numbers, numbers.repeat(1, 6)):  # few, and more than there are
        for head in range(HEADS):
            assert torch.equal(index.pick(asked)[head], kept[head, asked[head]])
