"""Memory for what was read lately of more blocks than fit: a page for each head of a block, brought up from disk.

A new block is pinned until it is sealed and lies on the disk; from then on each head of it comes and goes by itself.
What goes is what was not used for longest (LRU over layer, head and block). What attention always reads, the sink and
the recent blocks, is used at every step and so stays. Nothing is written when a page goes: the disk has it already.

Only the engine's thread brings pages up; others may allocate and release blocks and tell what lies on the disk. What it
has located stays in its frames until it locates again or lets go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cache.errors import DamagedBlock, OutOfBlocks
from cache.layout import Bytes, CacheLayout
from cache.pages import give_back, private
from cache.patience import Patience
from cache.tiers.base import Places, Traffic
from cache.tiers.disk import DiskTier
from cache.tiers.table import PARTS, Numbers, PageTable

FULL = "the memory is full of blocks that are in use or not written to the disk yet"


class PagedTier:
    """A window of memory onto a disk tier.

    Args:
        memory_bytes: for pages, and for what `yield_bytes` takes of it
        disk: where sealed blocks lie; a block's slot is its record there
        name: `host` where attention reads another tier above this one
    """

    device = torch.device("cpu")
    pins = True
    lasting = False

    def __init__(self, layout: CacheLayout, memory_bytes: int, disk: DiskTier, name: str = "device") -> None:
        self.name = name
        self.layout = layout
        self.capacity = disk.capacity
        self.disk = disk
        self.loads = 0  # heads of blocks that were brought up, since somebody asked
        self.memory_bytes = memory_bytes
        self._unit = disk.unit_bytes
        self._pages = PageTable(layout, self.capacity, memory_bytes // self._unit)
        shape = (self._pages.frames, layout.block_size, layout.head_dim)
        self._memory = [private(max(1, self._pages.frames * self._unit // 2)) for _ in range(2)]
        self._keys, self._values = (torch.frombuffer(m, dtype=layout.dtype).view(shape) for m in self._memory)
        self._raw = [x.view(torch.uint8).flatten(1).numpy() for x in (self._keys, self._values)]
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
        return self._pages.window

    @property
    def used_bytes(self) -> int:
        """Bytes of pages."""
        return self._pages.used * self._unit

    @property
    def most_landmarks(self) -> int:
        return self.memory_bytes // 2

    # -- blocks ----------------------------------------------------------------------------------------------

    def allocate(self) -> int:
        with self._changed:
            if not self._released and self._fresh == self.capacity:
                raise OutOfBlocks(f"all {self.capacity} blocks are in use")
            self._pages.time += 1  # what was located last may go, too
            if not self._pages.room(self._pages.block_pages):
                raise OutOfBlocks(FULL)
            frames = self._pages.take(self._pages.block_pages)
            slot = self._released.pop() if self._released else self._fresh
            self._fresh = max(self._fresh, slot + 1)
            self._raw[0][frames] = self._raw[1][frames] = 0  # weight 0 times a stray NaN would be NaN
            self._pages.put(self._pages.of_block(slot), frames)
            self._pages.pinned[frames] = True
            return slot

    def claim(self, slots: list[int]) -> None:
        """Take slots whose blocks lie on the disk, before any is allocated."""
        self._fresh = max(slots, default=-1) + 1
        self._released = sorted(set(range(self._fresh)) - set(slots), reverse=True)

    def release(self, slot: int) -> None:
        with self._changed:
            self._pages.drop(self._pages.frames_of(slot))
            self._released.append(slot)
            self._changed.notify_all()

    def sealed(self, slot: int) -> None:
        """Who writes it to the disk has been told."""

    def written(self, slot: int) -> None:
        """The block lies on the disk now: its pages may go."""
        with self._changed:
            self._pages.pinned[self._pages.frames_of(slot)] = False
            self._changed.notify_all()

    def units(self, slot: int) -> Bytes:
        units = np.empty((self._pages.block_pages, self._unit), np.uint8)
        with self._changed:
            frames = self._pages.frames_of(slot)
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
        frames, half = self._pages.frames_of(slot), self._unit // 2
        flat = units.reshape(-1, self._unit)
        self._raw[0][frames], self._raw[1][frames] = flat[:, :half], flat[:, half:]

    def write(self, layer: int, slots: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        found = self._pages.find(layer, slots.numpy()[:, None], np.arange(self.layout.kv_heads))
        at = torch.from_numpy(found - 1)
        self._keys[at, offsets[:, None]] = keys.to(self.layout.dtype)
        self._values[at, offsets[:, None]] = values.to(self.layout.dtype)

    # -- pages -----------------------------------------------------------------------------------------------

    def locate(self, layer: int, slots: Tensor, heads: Tensor, *, passing: bool = False) -> Places:
        pages, asked = self._pages, (layer, slots.numpy(), heads.numpy())
        with self._changed:
            found = pages.find(*asked)
            pages.held = pages.use(found)  # so that they do not go while others come
            if not found.all():
                came = self._bring(layer, np.unique(pages.page(*asked)[found == 0]))
                found = pages.find(*asked)
                pages.held = found.reshape(-1) - 1
                if passing:
                    pages.used_at[came] = 0
        return Places(self._keys, self._values, torch.from_numpy(found - 1))

    def pools(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Pages come and go."""
        return None

    def let_go(self) -> None:
        with self._changed:
            self._pages.held = self._pages.held[:0]

    def at_hand(self, layer: int, slots: Tensor, heads: Tensor) -> Tensor:
        slot, head = np.broadcast_arrays(slots.numpy(), heads.numpy())
        with self._changed:
            here = self._pages.find(layer, slot, head) > 0
        self.disk.announce(layer, slot[~here].tolist(), head[~here].tolist())
        return torch.from_numpy(here)

    def traffic(self) -> Traffic:
        came, self.loads = self.loads, 0
        return Traffic({(self.disk.name, self.name): came}, {self.disk.name: came})

    def _bring(self, layer: int, wanted: Numbers) -> Numbers:
        """Read pages of a layer from the disk; their frames."""
        slots, heads = (x.tolist() for x in self._pages.parts(layer, wanted))
        frames = self._take(len(wanted))
        done = 0
        try:
            self.disk.announce(layer, slots, heads)
            for frame, slot, head in zip(frames.tolist(), slots, heads, strict=True):
                self.disk.read(layer, slot, head, self._raw[0][frame], self._raw[1][frame])
                done += 1
        except OSError as error:
            raise DamagedBlock(slots[done], str(error)) from error
        finally:
            self._pages.put(wanted[:done], frames[:done])
            self._pages.untake(frames[done:])
        self.loads += done
        return frames

    def _take(self, count: int) -> Numbers:
        """Frames for pages that are read, waiting for the disk if need be; raises OutOfBlocks."""
        patience = Patience()
        while not self._pages.room(count):
            if not (self.pending() and patience.look(self._changed.wait)):
                raise OutOfBlocks(FULL)
        return self._pages.take(count)

    # -- sharing the memory ----------------------------------------------------------------------------------

    def yield_bytes(self, count: int) -> None:
        frames = self._pages.frames
        part = max(1, frames // PARTS)
        least = self.memory_bytes // 2 // self._unit
        limit = max(self.memory_bytes // 2, self.memory_bytes - count) // self._unit
        limit = limit if limit == frames else max(least, limit // part * part)  # in parts, so that it rarely moves
        with self._changed:
            shrinks = limit < self._pages.limit
            if limit != self._pages.limit and self._pages.resize(limit) and shrinks:
                self._give_back(limit)

    def _give_back(self, limit: int) -> None:
        """Let the system have the memory of frames from `limit` on."""
        for memory in self._memory:
            give_back(memory, limit * (self._unit // 2))
