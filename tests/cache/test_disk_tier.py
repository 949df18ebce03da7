"""Records in files: what was written comes back, and what is not that is never taken for it."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cache import CacheLayout, DamagedBlock, DiskTier, StoreError
from cache.layout import Bytes
from cache.tiers.disk import PAGE, VERSION, runs

LAYOUT = CacheLayout(layers=2, kv_heads=3, head_dim=8, block_size=4)
ENTRY = 40
MARK = b"f" * 32
Block = tuple[bytes, Bytes, Bytes]
"""Hash, keys and values, what its index keeps."""


def opened(folder: Path, layout: CacheLayout = LAYOUT, entry: int = ENTRY, mark: bytes = MARK) -> DiskTier:
    return DiskTier(folder, layout, entry, 1 << 20, mark)


def block(number: int, layout: CacheLayout = LAYOUT, entry: int = ENTRY) -> Block:
    chance = np.random.default_rng(number)
    unit = layout.block_bytes // layout.layers // layout.kv_heads
    units = chance.integers(0, 256, (layout.layers, layout.kv_heads, unit), dtype=np.uint8)
    return chance.bytes(16), units, chance.integers(0, 256, entry, dtype=np.uint8)


def read(disk: DiskTier, slot: int) -> Bytes:
    """Keys and values as they were given."""
    layout = disk.layout
    units = np.empty((layout.layers, layout.kv_heads, disk.unit_bytes), np.uint8)
    half = disk.unit_bytes // 2
    for layer in range(layout.layers):
        for head in range(layout.kv_heads):
            disk.read(layer, slot, head, units[layer, head, :half], units[layer, head, half:])
    return units


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskTier]:
    made = opened(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("entry", [0, 1, 40, 5000])
def test_what_is_written_comes_back(tmp_path: Path, dtype: torch.dtype, entry: int) -> None:
    layout = CacheLayout(layers=3, kv_heads=2, head_dim=32, block_size=16, dtype=dtype)
    disk = opened(tmp_path, layout, entry)
    blocks = {slot: block(slot, layout, entry) for slot in (5, 0, 3, 4)}
    for slot, (digest, units, kept) in blocks.items():
        disk.write(slot, digest, units, kept)
    for again in range(2):
        for slot, (digest, units, _) in blocks.items():
            if again:
                disk.expect(slot, digest)
            assert np.array_equal(read(disk, slot), units)
            assert disk.damage(slot, digest) is None
        slots = [3, 4, 5, 0]
        found = disk.entries(slots, [blocks[slot][0] for slot in slots])
        assert np.array_equal(found, [blocks[slot][2] for slot in slots])
        disk.close()
        disk = opened(tmp_path, layout, entry)
    disk.close()


def test_the_files_hold_no_more_than_they_may(tmp_path: Path) -> None:
    for capacity in (3 * PAGE, 100_000, 1 << 20):
        disk = DiskTier(tmp_path / str(capacity), LAYOUT, ENTRY, capacity, MARK)
        if disk.capacity:
            disk.write(disk.capacity - 1, *block(1))
        sizes = [(disk.folder / name).stat().st_size for name in ("blocks.kv", "landmarks.kv")]
        assert sum(sizes) <= capacity or not disk.capacity
        disk.close()


# -- files of another kind -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 8, 12, 43, 44, 52, 60, 76])
@pytest.mark.parametrize("name", ["blocks.kv", "landmarks.kv"])
def test_a_file_with_another_header_is_refused(disk: DiskTier, name: str, place: int) -> None:
    """Of another magic, version, fingerprint, record or block size; and it stays as it is."""
    disk.close()
    path = disk.folder / name
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(StoreError, match="move it away"):
            opened(disk.folder)
    assert path.read_bytes() == data


@pytest.mark.parametrize("change", ["mark", "entry", "layout"])
def test_a_tier_of_another_kind_refuses_the_files(disk: DiskTier, change: str) -> None:
    disk.write(0, *block(0))
    larger = CacheLayout(layers=2, kv_heads=3, head_dim=8, block_size=8)
    with pytest.raises(StoreError, match="version, model and settings"):
        opened(
            disk.folder,
            larger if change == "layout" else LAYOUT,
            ENTRY + (change == "entry"),
            b"g" * 32 if change == "mark" else MARK,
        )
    assert VERSION == 1


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "blocks.kv").write_text("my diary")
    with pytest.raises(StoreError, match="move it away"):
        opened(tmp_path)
    assert (tmp_path / "blocks.kv").read_text() == "my diary"


@pytest.mark.parametrize("written", [0, 1, 20, 55])
def test_a_header_that_was_cut_off_is_written_again(tmp_path: Path, written: int) -> None:
    """As a full disk leaves it."""
    disk = opened(tmp_path)
    disk.close()
    for name in ("blocks.kv", "landmarks.kv"):
        os.truncate(tmp_path / name, written)
    disk = opened(tmp_path)
    disk.write(0, *block(0))
    assert disk.damage(0, block(0)[0]) is None
    disk.close()
    opened(tmp_path).close()


def test_a_failed_start_leaves_no_open_file(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "landmarks.kv").write_text("something else")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(StoreError):
            opened(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


# -- damage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["hash", "sum", "table", "body", "entry"])
def test_every_flipped_byte_is_found(disk: DiskTier, part: str) -> None:
    digest, units, entry = block(7)
    disk.write(2, digest, units, entry)
    heads = LAYOUT.layers * LAYOUT.kv_heads
    first, last = {
        "hash": (0, 16),
        "sum": (16, 20),
        "table": (20, 20 + 4 * heads),
        "body": (disk._first, disk._first + LAYOUT.block_bytes),
        "entry": (0, 20 + ENTRY),
    }[part]
    handle, start = (disk._landmarks, 20 + ENTRY) if part == "entry" else (disk._blocks, disk.record_bytes)
    chance = random.Random(part)
    places = range(first, last) if last - first < 200 else chance.sample(range(first, last), 200)
    for place in places:
        at = PAGE + 2 * start + place
        (byte,) = os.pread(handle, 1, at)
        os.pwrite(handle, bytes([byte ^ 1 << chance.randrange(8)]), at)
        assert disk.damage(2, digest), f"byte {place} of the {part} may be any"
        assert part == "body" or not disk.recognised(2, digest)
        assert part != "entry" or len(disk.entries([2], [digest])) == 0
        os.pwrite(handle, bytes([byte]), at)
    assert disk.damage(2, digest) is None


def test_only_the_damaged_head_is_refused(disk: DiskTier) -> None:
    disk.write(0, *block(1))
    place = PAGE + disk._first + (1 * LAYOUT.kv_heads + 2) * disk.unit_bytes + 9
    os.pwrite(disk._blocks, bytes([os.pread(disk._blocks, 1, place)[0] ^ 4]), place)
    half = np.empty(disk.unit_bytes // 2, np.uint8), np.empty(disk.unit_bytes // 2, np.uint8)
    for layer in range(LAYOUT.layers):
        for head in range(LAYOUT.kv_heads):
            if (layer, head) != (1, 2):
                disk.read(layer, 0, head, *half)
    with pytest.raises(DamagedBlock, match="layer 1, head 2") as damage:
        disk.read(1, 0, 2, *half)
    assert damage.value.slot == 0


@pytest.mark.parametrize("name", ["blocks.kv", "landmarks.kv"])
def test_a_file_that_ends_early(disk: DiskTier, name: str) -> None:
    blocks = {slot: block(slot) for slot in range(3)}
    for slot, each in blocks.items():
        disk.write(slot, *each)
    path = disk.folder / name
    for less in (1, 20, 60, disk.record_bytes):
        os.truncate(path, max(PAGE, path.stat().st_size - less))
        assert disk.damage(2, blocks[2][0])
    os.truncate(path, 0)
    assert all(disk.damage(slot, blocks[slot][0]) for slot in blocks)
    assert len(disk.entries([0, 1, 2], [each[0] for each in blocks.values()])) == (0 if name == "landmarks.kv" else 3)


def test_a_record_that_another_block_has_taken(disk: DiskTier) -> None:
    old, young = block(1), block(2)
    disk.write(0, *old)
    disk.write(0, *young)
    assert disk.damage(0, old[0])
    with pytest.raises(DamagedBlock, match="another block"):
        disk.expect(0, old[0])
    assert len(disk.entries([0], [old[0]])) == 0
    assert disk.damage(0, young[0]) is None


def test_a_record_of_another_slot_is_not_its_own(disk: DiskTier) -> None:
    """Two records that changed places, as a file system may confuse them."""
    blocks = [block(1), block(2)]
    for slot, each in enumerate(blocks):
        disk.write(slot, *each)
    raw = [os.pread(disk._blocks, disk.record_bytes, PAGE + slot * disk.record_bytes) for slot in range(2)]
    for slot in range(2):
        os.pwrite(disk._blocks, raw[1 - slot], PAGE + slot * disk.record_bytes)
    for slot, each in enumerate(blocks):
        with pytest.raises(DamagedBlock, match="checksum"):
            read(disk, slot)
        assert disk.damage(slot, each[0])


def test_a_record_that_was_never_written(disk: DiskTier) -> None:
    disk.write(5, *block(5))
    for digest in (bytes(16), block(3)[0]):
        assert disk.damage(3, digest), "zeros pass for a block"
        assert not disk.recognised(3, digest)


def test_entries_stop_at_the_first_damaged_one(disk: DiskTier) -> None:
    slots = [4, 5, 6, 1, 2, 9, 8, 7]
    blocks = [block(slot) for slot in slots]
    for slot, each in zip(slots, blocks, strict=True):
        disk.write(slot, *each)
    digests = [each[0] for each in blocks]
    whole = np.array([each[2] for each in blocks])
    assert np.array_equal(disk.entries(slots, digests), whole)
    for bad in reversed(range(len(slots))):
        place = PAGE + slots[bad] * (20 + ENTRY) + 16
        os.pwrite(disk._landmarks, bytes([os.pread(disk._landmarks, 1, place)[0] ^ 255]), place)
        assert np.array_equal(disk.entries(slots, digests), whole[:bad])


def test_no_entries_of_no_blocks(disk: DiskTier) -> None:
    assert disk.entries([], []).shape == (0, ENTRY)


@pytest.mark.parametrize(
    ("slots", "stretches"),
    [
        ([], []),
        ([3], [(0, 1)]),
        ([3, 4, 5], [(0, 3)]),
        ([5, 4, 3], [(0, 1), (1, 2), (2, 3)]),
        ([1, 2, 7, 8, 8, 9], [(0, 2), (2, 4), (4, 6)]),
    ],
)
def test_runs(slots: list[int], stretches: list[tuple[int, int]]) -> None:
    assert list(runs(slots)) == stretches


# -- writes that do not succeed ------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1000, 4096, 5001])
def test_short_writes_go_on(disk: DiskTier, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    real: Callable[..., int] = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, place: real(handle, memoryview(data)[:most], place))
    disk.write(3, *block(3))
    assert disk.damage(3, block(3)[0]) is None


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_leaves_no_block(
    disk: DiskTier, monkeypatch: pytest.MonkeyPatch, nth: int, code: int
) -> None:
    old, young, real, calls = block(1), block(2), os.pwrite, 0
    disk.write(0, *old)

    def failing(handle: int, data: bytes, place: int) -> int:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(code, os.strerror(code))
        return real(handle, data, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing)
        with pytest.raises(OSError, match=r".+"):
            disk.write(0, *young)
    assert disk.damage(0, young[0])
    disk.write(0, *young)
    assert disk.damage(0, young[0]) is None
    assert np.array_equal(read(disk, 0), young[1])


def test_files_that_were_moved_away_are_missed(disk: DiskTier) -> None:
    assert not disk.vanished()
    for name in ("blocks.kv", "landmarks.kv"):
        path = disk.folder / name
        path.rename(disk.folder / "away")
        assert disk.vanished()
        path.write_bytes((disk.folder / "away").read_bytes())
        assert disk.vanished(), "another file is in its place"
        (disk.folder / "away").rename(path)
        assert not disk.vanished()


def test_closing_twice_closes_nothing_else(tmp_path: Path) -> None:
    disk = opened(tmp_path)
    disk.close()
    handle = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
    disk.close()
    os.fstat(handle)
    os.close(handle)
    assert disk.used_bytes == 0
