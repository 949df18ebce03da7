"""A window of memory onto the disk, against tensors that hold everything."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cache.patience
from cache import CacheLayout, DamagedBlock, DiskTier, OutOfBlocks, PagedTier
from cache.tiers.table import PARTS
from tests.cache.located import Located, check_located

LAYOUT = CacheLayout(layers=2, kv_heads=3, head_dim=4, block_size=4)
PAGES = LAYOUT.layers * LAYOUT.kv_heads
"""Of a block."""
HEADS = torch.arange(LAYOUT.kv_heads)
DIGEST = b"%016d"


class Truth:
    """A paged tier, and what it should hold."""

    def __init__(self, folder: Path, memory_blocks: int = 4, layout: CacheLayout = LAYOUT, capacity: int = 40) -> None:
        self.layout = layout
        entry, record = 4, 4096 + -(-layout.block_bytes // 4096) * 4096
        self.disk = DiskTier(folder, layout, entry, 2 * 4096 + capacity * (record + 20 + entry), b"f" * 32)
        assert self.disk.capacity == capacity
        self.tier = PagedTier(layout, memory_blocks * layout.block_bytes, self.disk)
        self.located: Located | None = None
        self.held: dict[int, torch.Tensor] = {}  # (2, layers, kv_heads, block_size, head_dim) by slot
        self._random = torch.Generator().manual_seed(1)

    def add(self, *, stored: bool = True) -> int:
        """A block with random contents."""
        slot = self.tier.allocate()
        layout = self.layout
        shape = (2, layout.layers, layout.kv_heads, layout.block_size, layout.head_dim)
        self.held[slot] = torch.randn(shape, generator=self._random).to(layout.dtype)
        offsets = torch.arange(layout.block_size)
        for layer in range(layout.layers):
            keys, values = (x.transpose(0, 1) for x in self.held[slot][:, layer])
            self.tier.write(layer, torch.full_like(offsets, slot), offsets, keys, values)
        if stored:
            self.store(slot)
        return slot

    def store(self, slot: int) -> None:
        """What an archive does."""
        self.disk.write(slot, DIGEST % slot, self.tier.units(slot), np.full(4, slot, np.uint8))
        self.tier.written(slot)

    def read(self, layer: int, slots: list[int], *, passing: bool = False) -> None:
        """Locate blocks of all heads; they hold what they should, until others are read."""
        places = self.tier.locate(layer, torch.tensor(slots), HEADS[: self.layout.kv_heads, None], passing=passing)
        self.located = layer, [(slot, self.held[slot]) for slot in slots], places
        self.look()

    def look(self) -> None:
        """What was located last is what it was, whatever has been done since."""
        check_located(self.located, self.held)

    def let_go(self) -> None:
        self.tier.let_go()
        self.located = None

    def in_memory(self, slot: int) -> int:
        """Pages of a block that are in memory."""
        return len(self.tier._pages.frames_of(slot))

    def check(self) -> None:
        """Every frame is idle or has one page that knows it; pages lie within the limit."""
        tier, pages = self.tier, self.tier._pages
        owned = np.flatnonzero(pages.owner >= 0)
        assert sorted([*owned.tolist(), *pages.idle]) == list(range(pages.limit))
        assert np.array_equal(pages.places[pages.owner[owned]], owned + 1)
        assert np.count_nonzero(pages.places) == len(owned)
        assert tier.used_bytes == len(owned) * self.disk.unit_bytes <= tier.memory_bytes
        assert tier.used == len(self.held)


@pytest.fixture
def truth(tmp_path: Path) -> Iterator[Truth]:
    made = Truth(tmp_path)
    yield made
    made.check()
    made.disk.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.patience, "PATIENCE", 0.05)


# -- reading -------------------------------------------------------------------------------------------------


def test_blocks_come_back_in_any_order(truth: Truth) -> None:
    slots = [truth.add() for _ in range(12)]
    chance = np.random.default_rng(3)
    for _ in range(60):
        truth.read(int(chance.integers(LAYOUT.layers)), chance.choice(slots, 2, replace=False).tolist())
    assert truth.tier.loads
    truth.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    truth = Truth(tmp_path, layout=CacheLayout(2, 2, 4, 4, dtype))
    slots = [truth.add() for _ in range(9)]
    for slot in slots + slots[::-1]:
        truth.read(1, [slot])
    truth.disk.close()


def test_heads_come_and_go_by_themselves(truth: Truth) -> None:
    slots = [truth.add() for _ in range(8)]
    before = truth.in_memory(slots[0])
    assert before == 0
    truth.tier.loads = 0
    places = truth.tier.locate(1, torch.tensor([slots[0]]), torch.tensor([2]))
    assert torch.equal(places.copied()[0][0], truth.held[slots[0]][0, 1, 2])
    assert (truth.in_memory(slots[0]), truth.tier.loads) == (1, 1)


def test_what_is_asked_for_twice_is_loaded_once(truth: Truth) -> None:
    slots = [truth.add() for _ in range(8)]
    truth.tier.loads = 0
    places = truth.tier.locate(0, torch.tensor([[slots[1], slots[1]], [slots[1], slots[0]]]), torch.tensor([[0], [1]]))
    assert truth.tier.loads == 3
    keys, _ = places.copied()
    assert torch.equal(keys[0, 0], keys[0, 1])
    assert torch.equal(keys[1, 1], truth.held[slots[0]][0, 0, 1])


def test_a_new_block_begins_with_zeros(truth: Truth) -> None:
    for _ in range(9):
        truth.add()
    slot = truth.tier.allocate()
    truth.held[slot] = torch.zeros(2, LAYOUT.layers, LAYOUT.kv_heads, LAYOUT.block_size, LAYOUT.head_dim)
    for layer in range(LAYOUT.layers):
        truth.read(layer, [slot])


def test_what_cannot_be_read_leaves_the_tier_whole(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = [truth.add() for _ in range(9)]
    real, calls = truth.disk.read, 0

    def fail_second(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(5, "Input/output error")
        real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(truth.disk, "read", fail_second)
        with pytest.raises(DamagedBlock, match="Input/output error") as damage:
            truth.read(0, slots[:1])
        assert damage.value.slot == slots[0]
    truth.check()
    truth.read(0, slots[:1])


# -- what stays and what goes --------------------------------------------------------------------------------


def test_pinned_pages_never_go(truth: Truth) -> None:
    old = [truth.add() for _ in range(6)]
    pinned = [truth.add(stored=False) for _ in range(3)]
    for slot in old * 3:
        truth.read(0, [slot])
        assert [truth.in_memory(p) for p in pinned] == [PAGES] * 3
    for slot in pinned:
        truth.read(1, [slot])
        truth.store(slot)
    for slot in old:
        truth.read(0, [slot])
    for slot in pinned:
        truth.read(1, [slot])


def test_a_scan_that_passes_does_not_push_out_what_is_hot(tmp_path: Path) -> None:
    truth = Truth(tmp_path, memory_blocks=8)
    slots = [truth.add() for _ in range(30)]
    hot = slots[:2]
    for _ in range(3):
        for layer in range(LAYOUT.layers):
            truth.read(layer, hot)
    for slot in slots[2:]:
        for layer in range(LAYOUT.layers):
            truth.read(layer, [slot], passing=True)
    assert [truth.in_memory(slot) for slot in hot] == [PAGES] * 2
    truth.tier.loads = 0
    truth.read(0, hot)
    assert truth.tier.loads == 0
    for slot in slots[2:]:
        truth.read(0, [slot])
        truth.read(1, [slot])
    assert [truth.in_memory(slot) for slot in hot] == [0] * 2, "without `passing` it does"
    truth.disk.close()


def test_without_room_to_pin_it_tells_at_once(truth: Truth) -> None:
    """Whoever allocates may hold what others need, so it is for him to wait."""
    pinned = [truth.add(stored=False) for _ in range(4)]
    truth.tier.pending = lambda: True
    begun = time.monotonic()
    with pytest.raises(OutOfBlocks, match="not written"):
        truth.add()
    assert time.monotonic() < begun + 1.0
    truth.check()
    truth.store(pinned[0])
    truth.add()


def test_a_reader_waits_until_the_disk_has_a_block(truth: Truth) -> None:
    stored, pinned = truth.add(), [truth.add(stored=False) for _ in range(4)]
    assert truth.in_memory(stored) == 0
    timer = threading.Timer(0.1, truth.store, [pinned[2]])
    timer.start()
    truth.read(0, [stored])
    timer.join()
    truth.look()


def test_a_reader_does_not_wait_for_ever(truth: Truth, impatient: None) -> None:
    stored, _ = truth.add(), [truth.add(stored=False) for _ in range(4)]
    with pytest.raises(OutOfBlocks, match="not written"):
        truth.read(0, [stored])


def test_what_is_read_stays_while_others_allocate(tmp_path: Path) -> None:
    """As a session that is taken in does beside a step; it gets its room when the step lets go."""
    truth = Truth(tmp_path, memory_blocks=8)
    slots = [truth.add() for _ in range(12)]
    for passing in (False, True):
        truth.read(0, slots[:8], passing=passing)
        some = []
        while True:
            try:
                some.append(truth.add(stored=False))
            except OutOfBlocks:
                break
            truth.look()
        assert len(some) == 4
        truth.tier.yield_bytes(truth.tier.memory_bytes)
        truth.look()
        truth.let_go()
        truth.tier.yield_bytes(0)
        some.append(truth.add(stored=False))
        for slot in some:
            truth.store(slot)
    truth.check()
    truth.disk.close()


def test_all_slots_are_taken_before_it_refuses(tmp_path: Path) -> None:
    truth = Truth(tmp_path, capacity=7)
    slots = [truth.add() for _ in range(7)]
    assert slots == list(range(7))
    with pytest.raises(OutOfBlocks, match="all 7 blocks"):
        truth.tier.allocate()
    truth.tier.release(3)
    del truth.held[3]
    assert truth.add() == 3
    truth.check()
    truth.disk.close()


def test_released_blocks_leave_the_memory(truth: Truth) -> None:
    slots = [truth.add() for _ in range(3)] + [truth.add(stored=False)]
    for slot in slots:
        truth.read(0, [slot])
    for slot in slots:
        truth.tier.release(slot)
        del truth.held[slot]
        assert truth.in_memory(slot) == 0
    assert (truth.tier.used, truth.tier.used_bytes) == (0, 0)
    truth.check()
    again = [truth.add() for _ in range(4)]
    assert set(again) == set(slots)
    for slot in again:
        truth.read(1, [slot])


def test_claimed_slots_are_not_given_out(tmp_path: Path) -> None:
    truth = Truth(tmp_path)
    truth.tier.claim([1, 4, 5])
    truth.held = dict.fromkeys([1, 4, 5], torch.empty(0))
    assert truth.tier.used == 3
    assert [truth.add() for _ in range(5)] == [0, 2, 3, 6, 7]
    truth.disk.close()


# -- sharing the memory --------------------------------------------------------------------------------------


def resident(truth: Truth) -> int:
    """Frames whose memory holds something."""
    return sum(bool(keys.any()) for keys in truth.tier._raw[0])


def test_memory_is_yielded_and_taken_back(tmp_path: Path) -> None:
    layout = CacheLayout(layers=2, kv_heads=2, head_dim=32, block_size=32)  # a page of the system is half a frame
    truth = Truth(tmp_path, memory_blocks=40, layout=layout)
    slots = [truth.add() for _ in range(38)]
    tier, whole = truth.tier, truth.tier.memory_bytes
    assert resident(truth) == 38 * 4
    for share in (0.25, 0.5, 0.9, 0.3, 0.0, 0.4, 0.0):
        tier.yield_bytes(int(share * whole))
        truth.check()
        allowed = max(0.5, 1 - share) * whole
        assert allowed - whole / PARTS - truth.disk.unit_bytes <= tier._pages.limit * truth.disk.unit_bytes <= allowed
        assert resident(truth) <= tier._pages.limit, "the system did not get its memory back"
        assert 1 <= tier.window <= max(1, tier._pages.limit // 4)
        for slot in (slots[0], slots[17], slots[37]):
            truth.read(0, [slot])
            truth.read(1, [slot])
    truth.disk.close()


def test_pinned_pages_are_not_yielded(truth: Truth) -> None:
    pinned = [truth.add(stored=False) for _ in range(4)]
    truth.tier.yield_bytes(truth.tier.memory_bytes // 2)
    truth.check()
    for slot in pinned:
        truth.read(0, [slot])
        truth.read(1, [slot])
        truth.store(slot)
    truth.let_go()
    truth.tier.yield_bytes(truth.tier.memory_bytes // 2)
    assert truth.tier.used_bytes <= truth.tier.memory_bytes // 2
    for slot in pinned:
        truth.read(0, [slot])


def test_half_of_the_memory_is_never_yielded(truth: Truth) -> None:
    truth.tier.yield_bytes(2 * truth.tier.memory_bytes)
    pinned = [truth.add(stored=False) for _ in range(2)]
    with pytest.raises(OutOfBlocks):
        truth.add()
    truth.tier.yield_bytes(0)
    for slot in (*pinned, truth.add(stored=False)):
        truth.read(0, [slot])


ACTIONS = st.one_of(
    st.tuples(st.sampled_from(["add", "keep", "release", "store", "read", "pass", "go"]), st.integers(0, 99)),
    st.tuples(st.just("yield"), st.integers(0, 60)),
)


@settings(max_examples=60, deadline=None)
@example([("add", 0), ("yield", 1), ("read", 0), ("release", 0), ("yield", 0), ("add", 0)])  # the slot is used again
@given(st.lists(ACTIONS, max_size=60))
def test_any_order(tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]) -> None:
    """Blocks are made, stored, read and released while the memory grows and shrinks."""
    patience, cache.patience.PATIENCE = cache.patience.PATIENCE, 0.0
    truth = Truth(tmp_path_factory.mktemp("tier"), memory_blocks=6)
    pinned: set[int] = set()
    try:
        for action, number in actions:
            slots = sorted(truth.held)
            try:
                if action == "add":
                    truth.add()
                elif action == "keep" and len(pinned) < 3:
                    pinned.add(truth.add(stored=False))
                elif action == "yield":
                    truth.tier.yield_bytes(truth.tier.memory_bytes * number // 100)
                elif action == "store" and pinned:
                    slot = sorted(pinned)[number % len(pinned)]
                    truth.store(slot)
                    pinned.remove(slot)
                elif action == "release" and slots:
                    slot = slots[number % len(slots)]
                    truth.tier.release(slot)
                    del truth.held[slot]
                    pinned.discard(slot)
                elif action == "go":
                    truth.let_go()
                elif action in ("read", "pass") and slots:
                    truth.read(number % 2, [slots[number % len(slots)]], passing=action == "pass")
            except OutOfBlocks:
                assert pinned or truth.located or len(truth.held) == truth.tier.capacity
            truth.check()
            truth.look()
            assert all(truth.in_memory(slot) == PAGES for slot in pinned)
        truth.tier.yield_bytes(0)
        for slot in sorted(pinned):
            truth.store(slot)
        for slot in truth.held:
            truth.read(0, [slot])
    finally:
        cache.patience.PATIENCE = patience
        truth.disk.close()
