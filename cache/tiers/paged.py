"""Memory for what was read lately of more blocks than fit: a page for each head of a block, brought up from disk.

A new block is pinned until it is sealed and lies on the disk; from then on each head of it comes and goes by itself.
What goes is what was not used for longest (LRU over layer, head and block). What attention always reads, the sink and
the recent blocks, is used at every step and so stays. Nothing is written when a page goes: the disk has it already.

Only the engine's thread brings pages up and lets them go; others may release blocks and tell what lies on the disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.errors import DamagedBlock, OutOfBlocks
from cache.layout import Bytes, CacheLayout
from cache.pages import give_back, private
from cache.tiers.base import Places
from cache.tiers.disk import DiskTier

Numbers = NDArray[np.int64]
PARTS = 64
"""Pages are let go in so many parts of the memory, which is cheaper than one by one."""
PATIENCE = 10.0
"""Seconds to wait for the disk when everything in memory is still to be written."""


class PagedTier:
    """A window of memory onto a disk tier.

    Args:
        memory_bytes: for pages, and for what `yield_bytes` takes of it
        disk: where sealed blocks lie; a block's slot is its record there
    """

    name = "device"
    device = torch.device("cpu")

    def __init__(self, layout: CacheLayout, memory_bytes: int, disk: DiskTier) -> None:
        self.layout = layout
        self.capacity = disk.capacity
        self.disk = disk
        self.loads = 0
        self._unit = disk.unit_bytes
        self.memory_bytes = memory_bytes
        self._frames = self._limit = memory_bytes // self._unit
        shape = (self._frames, layout.block_size, layout.head_dim)
        self._memory = [private(max(1, self._frames * self._unit // 2)) for _ in range(2)]
        self._keys, self._values = (torch.frombuffer(m, dtype=layout.dtype).view(shape) for m in self._memory)
        self._raw = [x.view(torch.uint8).flatten(1).numpy() for x in (self._keys, self._values)]
        # Frame of each (layer, slot, head), plus one: the system hands out zeros, and only for what is touched.
        self._pages = np.zeros(layout.layers * self.capacity * layout.kv_heads, np.int32)
        self._owner = np.full(self._frames, -1, np.int64)  # page of each frame
        self._pinned = np.zeros(self._frames, bool)
        self._used_at = np.zeros(self._frames, np.int64)
        self._time = 0
        self._idle = list(range(self._frames - 1, -1, -1))  # frames without a page
        self._released: list[int] = []
        self._fresh = 0
        self._changed = threading.Condition(threading.RLock())
        self.pending: Callable[[], bool] = lambda: True
        """Whether the disk still has to get blocks, so that it helps to wait."""

    @property
    def used(self) -> int:
        return self._fresh - len(self._released)

    @property
    def window(self) -> int:
        return max(1, min(self._limit // 4, self._limit - int(np.count_nonzero(self._pinned))))

    @property
    def used_bytes(self) -> int:
        """Bytes of pages."""
        return (self._limit - len(self._idle)) * self._unit

    # -- blocks ----------------------------------------------------------------------------------------------

    def allocate(self) -> int:
        with self._changed:
            if not self._released and self._fresh == self.capacity:
                raise OutOfBlocks(f"all {self.capacity} blocks are in use")
            self._time += 1  # what was located last may go, too
            frames = self._take(self.layout.layers * self.layout.kv_heads)
            slot = self._released.pop() if self._released else self._fresh
            self._fresh = max(self._fresh, slot + 1)
            self._raw[0][frames] = self._raw[1][frames] = 0  # weight 0 times a stray NaN would be NaN
            self._put(self._pages_of(slot), frames)
            self._pinned[frames] = True
            return slot

    def claim(self, slots: list[int]) -> None:
        """Take slots whose blocks lie on the disk, before any is allocated."""
        self._fresh = max(slots, default=-1) + 1
        self._released = sorted(set(range(self._fresh)) - set(slots), reverse=True)

    def release(self, slot: int) -> None:
        with self._changed:
            self._drop(self._frames_of(slot))
            self._released.append(slot)
            self._changed.notify_all()

    def written(self, slot: int) -> None:
        """The block lies on the disk now: its pages may go."""
        with self._changed:
            self._pinned[self._frames_of(slot)] = False
            self._changed.notify_all()

    def units(self, slot: int) -> Bytes:
        units = np.empty((self.layout.layers * self.layout.kv_heads, self._unit), np.uint8)
        with self._changed:
            frames = self._frames_of(slot)
            if whole := len(frames) == len(units):
                units[:, : self._unit // 2], units[:, self._unit // 2 :] = (raw[frames] for raw in self._raw)
        shaped = units.reshape(self.layout.layers, self.layout.kv_heads, self._unit)
        if not whole:  # then all of it lies on the disk
            try:
                self.disk.read_whole(slot, shaped)
            except OSError as error:
                raise DamagedBlock(slot, str(error)) from error
        return shaped

    def fill(self, slot: int, units: Bytes) -> None:
        frames, half = self._frames_of(slot), self._unit // 2
        flat = units.reshape(-1, self._unit)
        self._raw[0][frames], self._raw[1][frames] = flat[:, :half], flat[:, half:]

    def write(self, layer: int, slots: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        at = torch.from_numpy(self._find(layer, slots.numpy()[:, None], np.arange(self.layout.kv_heads)) - 1)
        self._keys[at, offsets[:, None]] = keys.to(self.layout.dtype)
        self._values[at, offsets[:, None]] = values.to(self.layout.dtype)

    # -- pages -----------------------------------------------------------------------------------------------

    def locate(self, layer: int, slots: Tensor, heads: Tensor, *, passing: bool = False) -> Places:
        with self._changed:
            found = self._find(layer, slots.numpy(), heads.numpy())
            self._time += 1
            self._used_at[found[found > 0] - 1] = self._time  # so that they do not go while others come
            if not found.all():
                missing = np.unique(self._page(layer, slots.numpy(), heads.numpy())[found == 0])
                came = self._bring(layer, missing)
                found = self._find(layer, slots.numpy(), heads.numpy())
                if passing:
                    self._used_at[came] = 0
        return Places(self._keys, self._values, torch.from_numpy(found - 1))

    def _find(self, layer: int, slots: Numbers, heads: Numbers) -> Numbers:
        """Frames plus one of pages, 0 where there is none."""
        return self._pages[self._page(layer, slots, heads)].astype(np.int64)

    def _page(self, layer: int, slots: Numbers, heads: Numbers) -> Numbers:
        return (layer * self.capacity + slots) * self.layout.kv_heads + heads

    def _pages_of(self, slot: int) -> Numbers:
        """All pages of a block (layers * kv_heads,)."""
        layers = np.arange(self.layout.layers)[:, None]
        return ((layers * self.capacity + slot) * self.layout.kv_heads + np.arange(self.layout.kv_heads)).reshape(-1)

    def _frames_of(self, slot: int) -> Numbers:
        """Frames of the pages of a block that are in memory."""
        frames = self._pages[self._pages_of(slot)].astype(np.int64)
        return frames[frames > 0] - 1

    def _bring(self, layer: int, pages: Numbers) -> Numbers:
        """Read pages of a layer from the disk; their frames."""
        which, of = np.divmod(pages - layer * self.capacity * self.layout.kv_heads, self.layout.kv_heads)
        slots, heads = which.tolist(), of.tolist()
        frames = self._take(len(pages))
        done = 0
        try:
            self.disk.announce(layer, slots, heads)
            for frame, slot, head in zip(frames.tolist(), slots, heads, strict=True):
                self.disk.read(layer, slot, head, self._raw[0][frame], self._raw[1][frame])
                done += 1
        except OSError as error:
            raise DamagedBlock(slots[done], str(error)) from error
        finally:
            self._put(pages[:done], frames[:done])
            self._idle += frames[done:].tolist()
        self.loads += done
        return frames

    def _put(self, pages: Numbers, frames: Numbers) -> None:
        self._pages[pages] = frames + 1
        self._owner[frames] = pages
        self._used_at[frames] = self._time

    def _take(self, count: int) -> Numbers:
        """Frames for new pages; raises OutOfBlocks."""
        end = time.monotonic() + PATIENCE
        while not self._room(count):
            if not self.pending() or time.monotonic() >= end:
                raise OutOfBlocks("the memory is full of blocks that are in use or not written to the disk yet")
            self._changed.wait(timeout=0.01)
        frames = self._idle[-count:]
        del self._idle[-count:]
        return np.array(frames, np.int64)

    def _room(self, count: int) -> bool:
        """Whether `count` frames are free, after letting go what was not used for longest if need be."""
        if len(self._idle) < count:
            gone = np.flatnonzero((self._owner >= 0) & ~self._pinned & (self._used_at < self._time))
            wanted = max(count - len(self._idle), self._limit // PARTS)
            if len(gone) > wanted:
                gone = gone[np.argpartition(self._used_at[gone], wanted)[:wanted]]
            self._drop(gone)
        return len(self._idle) >= count

    def _drop(self, frames: Numbers) -> None:
        """Forget pages; their frames are free."""
        self._pages[self._owner[frames]] = 0
        self._owner[frames] = -1
        self._pinned[frames] = False
        self._idle += frames[frames < self._limit].tolist()

    # -- sharing the memory ----------------------------------------------------------------------------------

    def yield_bytes(self, count: int) -> None:
        """Leave so many bytes of the budget, up to half of it, to others, who keep landmarks in them."""
        part = max(1, self._frames // PARTS)
        limit = max(self.memory_bytes // 2, self.memory_bytes - count) // self._unit
        limit = limit if limit == self._frames else limit // part * part  # in whole parts, so that it rarely moves
        with self._changed:
            if limit > self._limit:
                self._idle += range(self._limit, limit)
                self._limit = limit
            elif limit < self._limit and not self._pinned[limit : self._limit].any():
                above = np.arange(limit, self._limit)
                self._limit = limit
                self._idle = [frame for frame in self._idle if frame < limit]
                self._drop(above[self._owner[above] >= 0])
                self._give_back(limit)

    def _give_back(self, limit: int) -> None:
        """Let the system have the memory of frames from `limit` on."""
        for memory in self._memory:
            give_back(memory, limit * (self._unit // 2))
