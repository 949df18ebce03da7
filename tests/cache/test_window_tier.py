"""A device's window onto a tier in host memory, against tensors that hold everything.

What is on its way to the device comes as late as it may (late.py), so that whoever forgets to wait reads zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import cache.patience
from cache import CacheLayout, DeviceTier, DiskTier, OutOfBlocks, PagedTier, WindowTier
from cache.tiers import Copies
from tests.cache.late import LateCopies
from tests.cache.located import Located, check_located

LAYOUT = CacheLayout(layers=3, kv_heads=2, head_dim=4, block_size=4)
PAGES = LAYOUT.layers * LAYOUT.kv_heads
"""Of a block."""
UNIT = LAYOUT.block_bytes // PAGES
HEADS = torch.arange(LAYOUT.kv_heads)
DIGEST = b"%016d"
CAPACITY = 40


class Truth:
    """A window, and what it should hold.

    Args:
        folder: of a disk below the host memory; None for host memory that holds everything
    """

    def __init__(
        self, folder: Path | None, blocks: int = 4, host_blocks: int = 6, copies: Copies | None = None
    ) -> None:
        self.disk = None if folder is None else make_disk(folder)
        below: DeviceTier | PagedTier = DeviceTier(LAYOUT, CAPACITY * LAYOUT.block_bytes, name="host")
        if self.disk is not None:
            below = PagedTier(LAYOUT, host_blocks * LAYOUT.block_bytes, self.disk, "host")
        self.copies = LateCopies()
        memory = blocks * LAYOUT.block_bytes + 100
        self.tier = WindowTier(LAYOUT, memory, 100, below, self.copies if copies is None else copies)
        self.located: Located | None = None
        self.held: dict[int, Tensor] = {}  # (2, layers, kv_heads, block_size, head_dim) by slot
        self.open: set[int] = set()
        self._random = torch.Generator().manual_seed(1)

    def add(self, *, sealed: bool = True) -> int:
        """A block with random contents."""
        slot = self.tier.allocate()
        shape = (2, LAYOUT.layers, LAYOUT.kv_heads, LAYOUT.block_size, LAYOUT.head_dim)
        self.held[slot] = torch.randn(shape, generator=self._random)
        self.open.add(slot)
        offsets = torch.arange(LAYOUT.block_size)
        for layer in range(LAYOUT.layers):
            keys, values = (x.transpose(0, 1).to(self.tier.device) for x in self.held[slot][:, layer])
            self.tier.write(layer, torch.full_like(offsets, slot), offsets, keys, values)
        if sealed:
            self.seal(slot)
        return slot

    def seal(self, slot: int) -> None:
        """What a store does, and its archive."""
        self.tier.sealed(slot)
        self.open.discard(slot)
        if self.disk is not None:
            self.disk.write(slot, DIGEST % slot, self.tier.units(slot), np.full(4, slot, np.uint8))
            assert isinstance(self.tier.below, PagedTier)
            self.tier.below.written(slot)

    def release(self, slot: int) -> None:
        self.tier.release(slot)
        self.open.discard(slot)
        del self.held[slot]

    def read(self, layer: int, slots: list[int], *, passing: bool = False) -> None:
        """Locate blocks of all heads; they hold what they should, until others are read."""
        places = self.tier.locate(layer, torch.tensor(slots), HEADS[:, None], passing=passing)
        self.located = layer, [(slot, self.held[slot]) for slot in slots], places
        self.look()

    def look(self) -> None:
        """What was located last is what it was, whatever has been done since."""
        check_located(self.located, self.held)

    def let_go(self) -> None:
        self.tier.let_go()
        self.located = None

    def hint(self, layer: int, slots: list[int]) -> None:
        self.tier.prefetch(layer, torch.tensor(slots), HEADS[:, None])

    def here(self, slot: int, layer: int | None = None) -> int:
        """Pages of a block that are on the device, or on their way."""
        pages = self.tier._pages.of_block(slot).reshape(LAYOUT.layers, -1)
        return int(np.count_nonzero(self.tier._pages.places[pages if layer is None else pages[layer]]))

    def check(self) -> None:
        """Every frame is idle or has one page that knows it; what is not sealed is here and stays."""
        tier, pages = self.tier, self.tier._pages
        owned = np.flatnonzero(pages.owner >= 0)
        assert sorted([*owned.tolist(), *pages.idle]) == list(range(pages.limit))
        assert np.array_equal(pages.places[pages.owner[owned]], owned + 1)
        assert np.count_nonzero(pages.places) == len(owned)
        assert tier.used_bytes == len(owned) * UNIT <= tier.memory_bytes - tier.most_landmarks
        assert tier.used == len(self.held)
        for slot in self.open:
            assert self.here(slot) == PAGES
            assert pages.pinned[pages.frames_of(slot)].all()
        assert {int(x) for x in np.flatnonzero(pages.pinned)} <= {
            int(x) for slot in (*self.open, *tier._descents) for x in pages.frames_of(slot)
        }

    def close(self) -> None:
        self.check()
        if self.disk is not None:
            self.disk.close()


def make_disk(folder: Path) -> DiskTier:
    record = 4096 + -(-LAYOUT.block_bytes // 4096) * 4096
    return DiskTier(folder, LAYOUT, 4, 2 * 4096 + CAPACITY * (record + 20 + 4), b"f" * 32)


@pytest.fixture(params=["host", "disk"])
def truth(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Truth]:
    made = Truth(tmp_path if request.param == "disk" else None)
    yield made
    made.close()


# -- reading -------------------------------------------------------------------------------------------------


def test_blocks_come_back_in_any_order(truth: Truth) -> None:
    slots = [truth.add() for _ in range(12)]
    chance = np.random.default_rng(3)
    for _ in range(80):
        truth.read(int(chance.integers(LAYOUT.layers)), chance.choice(slots, 2, replace=False).tolist())
        truth.check()
    traffic = truth.tier.traffic()
    assert traffic.moved["host", "device"] == sum(traffic.waited.values()) > 0


def test_a_copy_that_is_not_waited_for_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the tests: without waiting, blocks would be wrong."""
    truth = Truth(None)
    slots = [truth.add() for _ in range(8)]
    monkeypatch.setattr(truth.tier, "_reach", lambda frames: None)
    with pytest.raises(AssertionError):
        truth.read(0, slots[:1])


def test_what_is_asked_for_twice_is_copied_once(truth: Truth) -> None:
    slots = [truth.add() for _ in range(8)]
    truth.tier.traffic()
    asked = torch.tensor([[slots[1], slots[1]], [slots[1], slots[0]]])
    keys, _ = truth.tier.locate(0, asked, torch.tensor([[0], [1]])).copied()
    assert sum(truth.tier.traffic().waited.values()) == 3
    assert torch.equal(keys[0, 0], keys[0, 1])
    assert torch.equal(keys[1, 1], truth.held[slots[0]][0, 0, 1])


def test_a_new_block_begins_with_zeros_whatever_is_on_its_way(truth: Truth) -> None:
    slots = [truth.add() for _ in range(9)]
    truth.read(0, slots[5:6])
    truth.hint(1, slots[:2])  # copies that nobody reaches, into frames that are soon another block's
    for slot in slots[:4]:
        truth.release(slot)
    truth.let_go()
    fresh = [truth.tier.allocate() for _ in range(4)]
    truth.copies.reach(10**9)
    for slot in fresh:
        truth.held[slot] = torch.zeros(2, LAYOUT.layers, LAYOUT.kv_heads, LAYOUT.block_size, LAYOUT.head_dim)
        truth.open.add(slot)
        for layer in range(LAYOUT.layers):
            truth.read(layer, [slot])


def test_what_fills_a_block_lies_below_until_it_is_asked_for(truth: Truth) -> None:
    source = Truth(None)
    slot = truth.tier.allocate()
    other = source.add()
    truth.tier.fill(slot, source.tier.units(other))
    truth.held[slot] = source.held[other]
    assert truth.here(slot) == 0
    truth.seal(slot)
    for layer in range(LAYOUT.layers):
        truth.read(layer, [slot])
    assert (truth.tier.units(slot) == source.tier.units(other)).all()


# -- going down ----------------------------------------------------------------------------------------------


def test_a_block_stays_until_it_has_come_down() -> None:
    truth = Truth(None)
    slot = truth.add()
    for _ in range(3):  # as many as there is room for, all of them pinned
        truth.add(sealed=False)
    truth.check()
    assert truth.here(slot) == PAGES
    assert not truth.copies.fallen[0].done
    truth.add(sealed=False)
    assert truth.here(slot) == 0, "it was waited for, and left"
    truth.release(min(truth.open))
    truth.read(1, [slot])
    truth.check()


def test_what_is_released_on_its_way_down_is_forgotten() -> None:
    truth = Truth(None)
    slot = truth.add()
    truth.release(slot)
    again = truth.add(sealed=False)
    assert again == slot
    for descent in truth.copies.fallen:
        descent.done = True
    truth.add()
    truth.read(2, [again])
    truth.check()


def test_units_are_told_before_the_device_has_moved_anything(truth: Truth) -> None:
    slot = truth.add()
    expected = truth.held[slot].permute(1, 2, 0, 3, 4).contiguous().flatten(2).view(torch.uint8).numpy()
    assert (truth.tier.units(slot) == expected).all()


def test_without_room_it_tells_and_stays_whole(truth: Truth) -> None:
    pinned = [truth.add(sealed=False) for _ in range(4)]
    with pytest.raises(OutOfBlocks, match="in use"):
        truth.add()
    truth.check()
    truth.seal(pinned[0])
    truth.add()


def test_a_full_host_is_told_and_takes_nothing_of_the_device() -> None:
    truth = Truth(None)
    for _ in range(CAPACITY):
        truth.add()
    for _ in range(2):
        with pytest.raises(OutOfBlocks, match="all 40 blocks"):
            truth.tier.allocate()
        truth.check()


# -- hints ---------------------------------------------------------------------------------------------------


def test_a_hint_brings_pages_before_they_are_asked_for(truth: Truth) -> None:
    slots = [truth.add() for _ in range(6)]
    for layer in range(LAYOUT.layers):
        truth.read(layer, slots[:1])
    truth.tier.traffic()
    truth.hint(1, slots[1:3])
    assert [truth.here(slot, 1) for slot in slots[1:3]] == [LAYOUT.kv_heads] * 2
    truth.read(1, slots[1:2])
    traffic = truth.tier.traffic()
    assert (traffic.foreseen, traffic.guessed, sum(traffic.waited.values())) == (4, 2, 0)
    truth.read(1, slots[1:2])
    assert truth.tier.traffic().guessed == 0, "it is told once"


def test_a_hint_takes_nothing_from_the_layer_that_computes() -> None:
    truth = Truth(None, blocks=2)
    slots = [truth.add() for _ in range(12)]
    located = slots[:5]  # 10 of 12 frames
    for slot in located:
        truth.read(0, [slot])
    truth.hint(1, slots[5:])
    assert [truth.here(slot, 0) for slot in located] == [LAYOUT.kv_heads] * 5
    truth.read(1, slots[5:6])
    truth.hint(2, slots[5:8])
    assert truth.here(slots[5], 1) == LAYOUT.kv_heads
    truth.check()


def test_a_hint_does_not_go_to_the_disk(tmp_path: Path) -> None:
    truth = Truth(tmp_path, host_blocks=4)
    slots = [truth.add() for _ in range(12)]
    for slot in slots[4:]:
        truth.read(0, [slot])
    truth.tier.traffic()
    truth.hint(0, slots[:1])
    assert truth.tier.traffic().moved == {("host", "device"): 0, ("disk", "host"): 0}
    truth.close()


def test_a_wrong_hint_costs_a_copy_and_nothing_else(truth: Truth) -> None:
    slots = [truth.add() for _ in range(12)]
    for turn in range(30):
        truth.hint(turn % 3, [slots[(5 * turn) % 12], slots[(5 * turn + 1) % 12]])
        truth.read(turn % 3, [slots[(7 * turn + 3) % 12]])
        truth.check()


# -- any order -----------------------------------------------------------------------------------------------

KINDS = ["add", "keep", "seal", "release", "read", "pass", "hint", "fall", "arrive", "units", "go"]
ACTIONS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 999)), max_size=70)


class Play:
    """Actions on a window, each named by a kind and a number that chooses."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth

    def do(self, kind: str, number: int) -> None:
        truth, slots = self.truth, sorted(self.truth.held)
        sealed = [slot for slot in slots if slot not in truth.open]
        if kind == "add":
            truth.add()
        elif kind == "keep" and len(truth.open) < 2:
            truth.add(sealed=False)
        elif kind == "seal" and truth.open:
            truth.seal(sorted(truth.open)[number % len(truth.open)])
        elif kind == "release" and slots:
            truth.release(slots[number % len(slots)])
        elif kind in ("read", "pass") and slots:
            truth.read(number % 3, [slots[number % len(slots)]], passing=kind == "pass")
        elif kind == "go":
            truth.let_go()
        elif kind == "hint" and sealed:
            truth.hint(number % 3, [sealed[number % len(sealed)], sealed[-1]])
        elif kind == "units" and sealed:
            assert truth.tier.units(sealed[number % len(sealed)]).any()
        else:
            self.device(kind, number)

    def device(self, kind: str, number: int) -> None:
        """What a device does by itself."""
        copies = self.truth.copies
        if kind == "arrive":
            copies.reach(copies.begun - number % 3)
        elif kind == "fall" and copies.fallen:
            copies.fallen[number % len(copies.fallen)].done = True


@pytest.mark.parametrize("kind", ["host", "disk"])
@settings(max_examples=60, deadline=None)
@given(actions=ACTIONS)
def test_any_order(tmp_path_factory: pytest.TempPathFactory, kind: str, actions: list[tuple[str, int]]) -> None:
    patience, cache.patience.PATIENCE = cache.patience.PATIENCE, 0.0
    truth = Truth(tmp_path_factory.mktemp("window") if kind == "disk" else None, blocks=4, host_blocks=5)
    play = Play(truth)
    try:
        for action in actions:
            try:
                play.do(*action)
            except OutOfBlocks:
                assert truth.open or truth.located or len(truth.held) == CAPACITY
            truth.check()
            truth.look()
        for slot in truth.held:
            truth.read(0, [slot])
    finally:
        cache.patience.PATIENCE = patience
        truth.close()
