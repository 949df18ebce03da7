"""Memory whose pages the system hands out when they are written, large ones where it can.

Reading much memory once, a core waits for translations of addresses: of pages of 4 KiB two cores of an AMD EPYC read 31
GB/s, of 2 MiB 56. Linux gives large pages to whoever asks for them (`MADV_HUGEPAGE`; by default to nobody else), in
whole and aligned pieces of 2 MiB. So what a first write takes is 2 MiB instead of 4 KiB: worth it for what gets full.
Knows neither blocks nor weights.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.compiling import kernels

LINE = 64
"""Bytes that memory gives at once."""
LARGE = 2 << 20
"""Bytes of a large page. Smaller memory lies where it comes."""
AHEAD = 64 << 20
"""Bytes of all pools that are had before they are in use, at most, but of each pool a large page or two: a second of
reading, or more."""


def large_pages() -> bool:
    """Whether the system gives large pages to whoever asks."""
    try:
        return "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return False


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in memory of the CPU, of which nothing is taken until it is written; `torch.zeros` would touch it all.

    From 2 MiB on they begin at a border of large pages and lie in such pages where the system has any.
    """
    count = math.prod(shape)
    raw = zero_bytes(max(1, count) * dtype.itemsize)  # torch knows no view of nothing as another type
    return torch.from_numpy(raw).view(dtype)[:count].view(shape)


def zero_bytes(count: int) -> NDArray[np.uint8]:
    """`zeros` as bytes (count,)."""
    if count < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(count, np.uint8)
    memory = private(count + LARGE)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % LARGE
    return whole[start : start + count]


class Slab:
    """Pieces of memory that belong together, one after the other in large pages, as zeros.

    It is given back when nobody has a piece of it any more.

    Args:
        size: bytes that are mapped at once; what nobody takes costs nothing
    """

    def __init__(self, size: int = 8 * LARGE) -> None:
        self._size = size
        self._left = np.empty(0, np.uint8)

    def take(self, count: int) -> NDArray[np.uint8]:
        """So many bytes (count,) from a border of 64 on."""
        whole = -(-count // LINE) * LINE
        if len(self._left) < whole:
            self._left = zero_bytes(max(self._size, whole))
        piece, self._left = self._left[:count], self._left[whole:]
        return piece


class Ahead:
    """Has pages of memory that gets full from its beginning on before somebody waits for them.

    Who writes to a page first waits until the system has cleared it. Of a large one that is a tenth of a millisecond at
    best, and 5 to 10 where a virtual machine gets its own memory that late; a block lies in two pages for each layer,
    and all of them begin to be used at once. A thread of its own is ahead of what is in use by as much again, up to the
    border of a large page, and by little more than AHEAD in all.

    Args:
        pools: that get full together, all of one size
    """

    def __init__(self, pools: Sequence[Tensor]) -> None:
        self._pools = pools
        self._size, self._most = pools[0].nbytes // LARGE * LARGE, max(LARGE, AHEAD // len(pools))
        self._done = 0  # bytes of each pool
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pages")
        if self._size:
            kernels("page").touch(0, 0)  # compiled now rather than beside somebody's first request

    def used(self, count: int) -> None:
        """So many bytes of each pool are in use. Does not wait."""
        end = min(-(-(count + min(count, self._most)) // LARGE) * LARGE, self._size)
        if end > self._done:
            with contextlib.suppress(RuntimeError):  # no thread can be had, or the process ends: pages come late then
                self._thread.submit(touch, self._pools, self._done, end)
            self._done = end


def touch(pools: Sequence[Tensor], start: int, end: int) -> None:
    """Have the large pages from one byte of each pool to another, the first ones first; what lies there stays."""
    for page in range(start, end, LARGE):
        for pool in pools:
            kernels("page").touch(pool.data_ptr() + page, pool.data_ptr() + page + LARGE)


def private(count: int) -> mmap.mmap:
    """A mapping in large pages, if it is large, that can be given back; shared memory could not be."""
    memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if count >= LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def give_back(memory: mmap.mmap, start: int) -> None:
    """Let the system have what lies from `start` on; it is zeros again. Large pages are not cut into small ones."""
    page = LARGE if len(memory) >= LARGE else mmap.PAGESIZE
    start = -(-start // page) * page
    if start < len(memory):
        memory.madvise(mmap.MADV_DONTNEED, start, len(memory) - start)
