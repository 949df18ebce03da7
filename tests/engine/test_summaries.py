"""What kernels say of blocks that are filled, against torch, and that it does not depend on who is asked together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cache import BlockStore, CacheLayout, DeviceTier, Session
from engine import RetrievalSettings
from engine.attention.base import LayerGeometry
from engine.attention.reference import ReferenceAttention
from engine.attention.summaries import Summaries
from engine.rotation import Rotation

HEADS, DIM, SIZE, BLOCKS = 2, 32, 16, 11
MOMENTS = RetrievalSettings("moments", 3, 1, 1, "absolute", estimate_rest=True, rest_slopes=True, landmark_dtype="int4")
TRAINED = RetrievalSettings("trained", 3, 1, 1, "bounded", landmark_dtype="int4")
ROTATION = Rotation(100.0 ** -(torch.arange(12, dtype=torch.float64) / 12))


def filled(dtype: torch.dtype, settings: RetrievalSettings) -> tuple[Session, ReferenceAttention]:
    """A session whose blocks lie in no order, and the attention that says what stands for them."""
    layout = CacheLayout(layers=1, kv_heads=HEADS, head_dim=DIM, block_size=SIZE, dtype=dtype)
    store = BlockStore(DeviceTier(layout, 40 * layout.block_bytes))
    taken = [store.allocate() for _ in range(20)]
    store.release(taken[::3] + taken[1::3])
    attention = ReferenceAttention([LayerGeometry(ROTATION)], layout, settings)
    session = Session("one", store, [settings.index_shape(DIM, SIZE)])
    session.append([1] * (SIZE * BLOCKS))
    session.reserve(SIZE * BLOCKS)
    generator = torch.Generator().manual_seed(3)
    keys, values = torch.randn(2, SIZE * BLOCKS, HEADS, DIM, generator=generator) + 0.5
    keys[2 * SIZE : 3 * SIZE] = 1.0  # all of a block are equal
    positions = torch.arange(SIZE * BLOCKS)
    store.write(0, session.slots(positions // SIZE), positions % SIZE, keys, values)
    return session, attention


def parts(summaries: Summaries, session: Session, first: int, last: int) -> list[Tensor]:
    found = summaries.of(session.store, 0, session.slots_between(first, last), first, ROTATION)
    told = [found.landmarks, found.values, *(found.slopes or ())]
    return [part for part in told if part is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings", [MOMENTS, replace(MOMENTS, positions="bounded"), TRAINED], ids=lambda x: x.landmarks
)
def test_blocks_are_summarised_as_by_torch(settings: RetrievalSettings, dtype: torch.dtype) -> None:
    session, attention = filled(dtype, settings)
    index = session.indexes[0]
    assert index is not None
    expected = attention._summary(0, session, index, session.slots_between(0, BLOCKS))
    told = [expected.landmarks, expected.values, *(expected.slopes or ())]
    summaries = Summaries(attention.layout, settings)
    whole = parts(summaries, session, 0, BLOCKS)
    for mine, its in zip(whole, [part for part in told if part is not None], strict=True):
        torch.testing.assert_close(mine, its, atol=2e-5, rtol=1e-4)
    pieces = [parts(summaries, session, *some) for some in ((0, 1), (1, 2), (2, 7), (7, BLOCKS))]
    for number, mine in enumerate(whole):
        assert torch.equal(torch.cat([piece[number] for piece in pieces], 1), mine)


@pytest.mark.parametrize("settings", [MOMENTS, TRAINED], ids=lambda x: x.landmarks)
def test_it_is_the_same_where_a_tier_has_to_be_asked(
    settings: RetrievalSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, attention = filled(torch.bfloat16, settings)
    summaries = Summaries(attention.layout, settings)
    expected = parts(summaries, session, 2, BLOCKS)
    monkeypatch.setattr(session.store.tier, "pools", lambda layer: None)
    for mine, its in zip(parts(summaries, session, 2, BLOCKS), expected, strict=True):
        assert torch.equal(mine, its)


def test_two_threads_say_the_same() -> None:
    session, attention = filled(torch.float32, MOMENTS)
    summaries = Summaries(attention.layout, MOMENTS)
    expected = parts(summaries, session, 0, BLOCKS)
    torch.set_num_threads(2)
    found = parts(summaries, session, 0, BLOCKS)
    torch.set_num_threads(1)
    for mine, its in zip(found, expected, strict=True):
        assert torch.equal(mine, its)
