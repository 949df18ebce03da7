"""The device tier against a dense tensor of the same shape."""

from __future__ import annotations

import pytest
import torch

from cache import BlockStore, CacheLayout, DeviceTier, OutOfBlocks
from tests.cache.test_pages import SMAPS, grown_to, resident

LAYOUT = CacheLayout(layers=2, kv_heads=3, head_dim=4, block_size=5)
CAPACITY = 6


@pytest.fixture
def tier() -> DeviceTier:
    tier = DeviceTier(LAYOUT, CAPACITY * LAYOUT.block_bytes)
    for _ in range(CAPACITY):
        tier.allocate()
    return tier


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(tier: DeviceTier, layer: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Write every place of a layer in random order; the dense keys and values (heads, slots, size, dim)."""
    shape = (CAPACITY * LAYOUT.block_size, LAYOUT.kv_heads, LAYOUT.head_dim)
    keys, values = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed))
    for places in order.split(7):
        tier.write(layer, places // LAYOUT.block_size, places % LAYOUT.block_size, keys[places], values[places])
    dense_keys, dense_values = (x.unflatten(0, (CAPACITY, -1)).permute(2, 0, 1, 3) for x in (keys, values))
    return dense_keys, dense_values


def test_what_is_written_is_read(tier: DeviceTier) -> None:
    written = [filled(tier, layer, seed=10 * layer) for layer in range(LAYOUT.layers)]
    slots = torch.tensor([4, 0, 0, 5, 2])
    for layer, (keys, values) in enumerate(written):
        read_keys, read_values = BlockStore(tier).read(layer, slots)
        assert torch.equal(read_keys, keys[:, slots])
        assert torch.equal(read_values, values[:, slots])


@pytest.mark.parametrize("shape", [(), (4,), (2, 5), (2, 0)])
def test_each_head_gathers_its_own_blocks(tier: DeviceTier, shape: tuple[int, ...]) -> None:
    keys, values = filled(tier, 1, seed=3)
    slots = torch.randint(CAPACITY, (LAYOUT.kv_heads, *shape), generator=torch.Generator().manual_seed(5))
    found_keys, found_values = BlockStore(tier).gather(1, slots)
    for head in range(LAYOUT.kv_heads):
        assert torch.equal(found_keys[head], keys[head, slots[head]])
        assert torch.equal(found_values[head], values[head, slots[head]])


def test_writing_one_place_leaves_the_others(tier: DeviceTier) -> None:
    keys, values = (x.clone() for x in filled(tier, 0, seed=1))
    one = torch.ones(1, LAYOUT.kv_heads, LAYOUT.head_dim)
    tier.write(0, torch.tensor([2]), torch.tensor([3]), one, -one)
    keys[:, 2, 3], values[:, 2, 3] = 1.0, -1.0
    read_keys, read_values = BlockStore(tier).read(0, torch.arange(CAPACITY))
    assert torch.equal(read_keys, keys)
    assert torch.equal(read_values, values)


def test_keys_are_stored_in_the_layouts_precision() -> None:
    layout = CacheLayout(layers=1, kv_heads=1, head_dim=4, block_size=2, dtype=torch.bfloat16)
    tier = DeviceTier(layout, layout.block_bytes)
    keys = random(2, 1, 4, seed=2)
    slot = torch.full((2,), tier.allocate())
    tier.write(0, slot, torch.arange(2), keys, keys)
    read, _ = BlockStore(tier).read(0, slot[:1])
    assert read.dtype == torch.bfloat16
    assert torch.equal(read[0, 0], keys[:, 0].bfloat16())


def test_capacity_is_whole_blocks_of_the_budget() -> None:
    assert DeviceTier(LAYOUT, 3 * LAYOUT.block_bytes - 1).capacity == 2
    assert LAYOUT.block_bytes == 2 * 2 * 3 * 4 * 5 * 4  # keys and values, layers, heads, dim, size, fp32


def test_slots_are_distinct_until_none_is_left_and_come_back_when_released() -> None:
    tier = DeviceTier(LAYOUT, CAPACITY * LAYOUT.block_bytes)
    slots = [tier.allocate() for _ in range(CAPACITY)]
    assert sorted(slots) == list(range(CAPACITY))
    assert tier.used == CAPACITY
    with pytest.raises(OutOfBlocks, match="6 blocks"):
        tier.allocate()
    tier.release(slots[2])
    tier.release(slots[4])
    assert tier.used == CAPACITY - 2
    assert {tier.allocate(), tier.allocate()} == {slots[2], slots[4]}
    with pytest.raises(OutOfBlocks):
        tier.allocate()


@pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux")
def test_memory_of_blocks_is_there_before_they_are_written() -> None:
    layout = CacheLayout(layers=2, kv_heads=2, head_dim=64, block_size=16)
    tier, before = DeviceTier(layout, 8192 * layout.block_bytes), resident()
    assert resident() < before + 64 * layout.block_bytes
    for _ in range(2048):
        tier.allocate()
    expected = before + 2048 * layout.block_bytes
    assert grown_to(expected) >= expected
