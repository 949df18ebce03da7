from __future__ import annotations

import gc
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.pages import AHEAD, LARGE, Ahead, Slab, touch, zero_bytes, zeros

SMAPS = Path("/proc/self/smaps")
MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def grown_to(wanted: int) -> int:
    """Bytes of memory, once there are so many of them or half a minute has passed."""
    deadline = time.monotonic() + 30
    while resident() < wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return resident()


def in_large_pages(address: int) -> int:
    """Bytes of large pages in the mapping that holds an address."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and first == "AnonHugePages:":
            return int(line.split()[1]) * 1024
    return 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (3, 1 << 20), (1, LARGE)])
def test_they_are_zeros_that_can_be_written(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = zeros(shape, dtype)
    assert found.shape == shape
    assert found.dtype == dtype
    assert not found.any()
    found += 1
    assert torch.equal(found, torch.ones(shape, dtype=dtype))


def test_large_memory_begins_at_a_border() -> None:
    assert zero_bytes(LARGE + 12345).ctypes.data % LARGE == 0
    assert len(zero_bytes(LARGE + 12345)) == LARGE + 12345


@pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux")
def test_nothing_is_taken_before_it_is_written_and_all_is_given_back() -> None:
    before = resident()
    memory = zeros((64, LARGE), torch.uint8)
    assert resident() < before + LARGE
    memory[:8] = 1
    assert before + 7 * LARGE <= resident() < before + 10 * LARGE
    del memory
    gc.collect()
    assert resident() < before + 2 * LARGE


@pytest.mark.skipif(not MODE.exists() or "[never]" in MODE.read_text(), reason="the system has no large pages")
def test_it_lies_in_large_pages() -> None:
    memory = zero_bytes(4 * LARGE)
    memory[::4096] = 1
    assert in_large_pages(memory.ctypes.data) >= LARGE
    small = np.ones(LARGE // 2, np.uint8)
    assert small.ctypes.data  # and smaller memory does not ask for them


def test_pieces_of_a_slab_are_zeros_apart_from_each_other() -> None:
    slab = Slab(LARGE)
    pieces = [slab.take(count) for count in (1, 100, LARGE // 2, LARGE // 2, 3 * LARGE, 7)]
    assert all(not piece.any() and piece.ctypes.data % 64 == 0 for piece in pieces)
    for value, piece in enumerate(pieces, 1):
        piece[:] = value
    assert [(len(piece), set(piece.tolist())) for piece in pieces[:2]] == [(1, {1}), (100, {2})]
    assert all((piece == value).all() for value, piece in enumerate(pieces, 1))


@pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux")
def test_a_slab_is_given_back_with_its_last_piece() -> None:
    before, slab = resident(), Slab(4 * LARGE)
    one, other = slab.take(2 * LARGE), slab.take(2 * LARGE)
    one[:] = other[:] = 1
    del slab, one
    gc.collect()
    assert resident() > before + 3 * LARGE
    del other
    gc.collect()
    assert resident() < before + LARGE


@pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux")
def test_pages_are_there_before_they_are_used_but_never_many() -> None:
    pools = [zeros((64, LARGE), torch.uint8) for _ in range(2)]
    ahead = Ahead(pools)
    begun = resident()

    def comes(bytes_of_each: int) -> bool:
        """Whether so many are taken of each pool, and stay so."""
        grown_to(begun + 2 * bytes_of_each)
        time.sleep(0.05)
        return 0 <= resident() - begun - 2 * bytes_of_each < LARGE

    ahead.used(LARGE // 3)
    assert comes(LARGE)
    ahead.used(2 * LARGE)
    assert comes(4 * LARGE)
    ahead.used(LARGE)
    assert comes(4 * LARGE)
    ahead.used(30 * LARGE)
    assert comes(30 * LARGE + AHEAD // 2)
    ahead.used(63 * LARGE)
    assert comes(64 * LARGE)
    assert not any(pool.any() for pool in pools)


@pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux")
def test_of_many_pools_the_next_page_is_there_before_the_one_before_is_full() -> None:
    pools = [zeros((3, LARGE), torch.uint8) for _ in range(2 * AHEAD // LARGE)]
    ahead, begun = Ahead(pools), resident()
    ahead.used(LARGE // 2 + 1)
    expected = begun + 2 * LARGE * len(pools)
    assert 0 <= grown_to(expected) - expected < LARGE


def test_what_is_written_meanwhile_stays() -> None:
    memory = zeros((32 * LARGE // 8,), torch.int64)
    numbers = torch.arange(len(memory))
    with ThreadPoolExecutor(1) as other:
        taken = other.submit(touch, [memory], 0, memory.nbytes)
        for at in range(0, len(memory), 4096):
            memory[at : at + 4096] = numbers[at : at + 4096]
        taken.result()
    assert torch.equal(memory, numbers)
