"""Reference counts: a slot lives as long as somebody holds it, and `check` tells when the books are wrong."""

from __future__ import annotations

import pytest

from cache import BlockStore, CacheLayout, DeviceTier, OutOfBlocks

LAYOUT = CacheLayout(layers=1, kv_heads=1, head_dim=2, block_size=4)


@pytest.fixture
def store() -> BlockStore:
    return BlockStore(DeviceTier(LAYOUT, 4 * LAYOUT.block_bytes))


def test_a_shared_slot_outlives_its_first_owner(store: BlockStore) -> None:
    slots = [store.allocate(), store.allocate()]
    store.share(slots)
    store.release(slots)
    assert store.free == 2
    store.check([slots])
    store.release(slots[:1])
    assert store.free == 3
    store.release(slots[1:])
    assert store.free == 4
    store.check([])


def test_a_slot_cannot_be_released_more_often_than_it_is_held(store: BlockStore) -> None:
    slot = store.allocate()
    store.release([slot])
    with pytest.raises(KeyError):
        store.release([slot])
    assert store.free == 4


def test_without_room_nothing_changes(store: BlockStore) -> None:
    slots = [store.allocate() for _ in range(4)]
    with pytest.raises(OutOfBlocks):
        store.allocate()
    store.check([slots])


def test_check_finds_a_leak_and_a_wrong_count(store: BlockStore) -> None:
    slots = [store.allocate(), store.allocate()]
    store.check([slots])
    store.check([slots[:1], slots[1:]])
    for wrong in ([slots[:1]], [slots, slots[:1]], []):
        with pytest.raises(AssertionError):
            store.check(wrong)


def test_check_finds_a_slot_that_the_tier_lost(store: BlockStore) -> None:
    slot = store.allocate()
    store.tier.allocate()
    with pytest.raises(AssertionError, match="tier"):
        store.check([[slot]])
