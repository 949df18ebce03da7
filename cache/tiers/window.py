"""Memory of a device for what was read lately of more blocks than fit there: a window onto a tier in host memory.

A slot is the same in both. The tier below has every sealed block, in memory or in turn on its disk, so nothing is
written when a page goes. A new block is pinned here until it is sealed; then it goes down, in the background, and from
then on each head of it comes and goes by itself. What goes is what was not used for longest, as in `paged.py`.

Pages can be asked for before they are needed. That is a hint: it takes no room from what the layer that computes now
has located, and a wrong one costs a copy.

Only the engine's thread locates; others may allocate and release blocks and ask for their units.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from cache.errors import OutOfBlocks
from cache.layout import Bytes, CacheLayout
from cache.tiers.base import LowerTier, Places, Traffic
from cache.tiers.copies import Copies, Descent
from cache.tiers.device import pool
from cache.tiers.table import Numbers, PageTable


class WindowTier:
    """See the module.

    Args:
        memory_bytes: of the device, for pages and for the landmarks of all sessions
        landmark_bytes: of these, what is left to landmarks
        below: the tier in host memory
        copies: to and from the device
    """

    name = "device"
    pins = True
    lasting = False

    def __init__(
        self, layout: CacheLayout, memory_bytes: int, landmark_bytes: int, below: LowerTier, copies: Copies
    ) -> None:
        self.layout = layout
        self.device = copies.device
        self.capacity = below.capacity
        self.memory_bytes = memory_bytes
        self.most_landmarks = landmark_bytes
        self.below, self._copies = below, copies
        self._unit = layout.block_bytes // (layout.layers * layout.kv_heads)
        self._pages = PageTable(layout, self.capacity, (memory_bytes - landmark_bytes) // self._unit)
        shape = (self._pages.frames, layout.block_size, layout.head_dim)
        self._keys, self._values = (pool(shape, layout.dtype, self.device) for _ in range(2))
        self._heads = np.arange(layout.kv_heads)
        self._copy_of = np.zeros(self._pages.frames, np.int64)  # number of the last copy into each frame
        self._hinted = np.zeros(self._pages.frames, bool)  # brought up by a hint, and not located since
        self._layer, self._begun = -1, 0  # the layer that computes now, and since when
        self._waited = self._foreseen = self._guessed = 0
        self._descents: dict[int, Descent] = {}
        self._lock = threading.RLock()
        # Of its own: who writes to the disk waits for blocks that come down, and nobody else should with it.
        self._settling = threading.Lock()

    @property
    def used(self) -> int:
        return self.below.used

    @property
    def used_bytes(self) -> int:
        """Bytes of pages."""
        return self._pages.used * self._unit

    @property
    def window(self) -> int:
        return self._pages.window

    # -- blocks ----------------------------------------------------------------------------------------------

    def allocate(self) -> int:
        slot = self.below.allocate()
        with self._lock:
            try:
                frames = self._take_for_block()
            except OutOfBlocks:
                self.below.release(slot)
                raise
            self._reach(frames)  # a copy into them may be on its way still
            at = torch.from_numpy(frames).to(self.device)
            for whole in (self._keys, self._values):  # weight 0 times a stray NaN would be NaN
                whole.index_fill_(0, at, 0)
            self._pages.put(self._pages.of_block(slot), frames)
            self._pages.pinned[frames] = True
            return slot

    def _take_for_block(self) -> Numbers:
        """Frames for a block; what the layer that computes now has located goes last."""
        count = self._pages.block_pages
        if not self._pages.room(count, before=self._begun):
            self._pages.time += 1
        return self._take(count)

    def release(self, slot: int) -> None:
        with self._lock, self._settling:
            self._descents.pop(slot, None)
            self._pages.drop(self._pages.frames_of(slot))
            self.below.release(slot)

    def write(self, layer: int, slots: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        found = self._pages.find(layer, slots.numpy()[:, None], self._heads)
        at, inside = torch.from_numpy(found - 1).to(self.device), offsets[:, None].to(self.device)
        self._keys[at, inside] = keys.to(self.layout.dtype)
        self._values[at, inside] = values.to(self.layout.dtype)

    def fill(self, slot: int, units: Bytes) -> None:
        """It stays below until a head of it is asked for."""
        with self._lock:
            self._pages.drop(self._pages.frames_of(slot))
            self.below.fill(slot, units)

    # -- going down ------------------------------------------------------------------------------------------

    def sealed(self, slot: int) -> None:
        with self._lock:
            frames = self._pages.frames_of(slot)
            if len(frames):  # else it has been filled, and lies below
                at = torch.from_numpy(frames).to(self.device)
                pages = torch.stack((self._keys.index_select(0, at), self._values.index_select(0, at)), dim=1)
                self._descents[slot] = self._copies.down(pages)
                self._settle_done()
            self.below.sealed(slot)

    def _settle_done(self) -> None:
        for slot, descent in list(self._descents.items()):  # a copy: who writes to the disk settles, too
            if descent.done:
                self._settle(slot)

    def _settle(self, slot: int) -> None:
        """Have a block that is on its way down lie below, waiting for it; its pages may go from here."""
        with self._settling:
            descent = self._descents.get(slot)
            if descent is None:
                return
            raw = descent.take().flatten(1).view(torch.uint8).numpy()
            self.below.fill(slot, raw.reshape(self.layout.layers, self.layout.kv_heads, -1))
            del self._descents[slot]
            self._pages.pinned[self._pages.frames_of(slot)] = False

    def units(self, slot: int) -> Bytes:
        self._settle(slot)
        return self.below.units(slot)

    # -- pages -----------------------------------------------------------------------------------------------

    def locate(self, layer: int, slots: Tensor, heads: Tensor, *, passing: bool = False) -> Places:
        pages, asked = self._pages, (layer, slots.numpy(), heads.numpy())
        with self._lock:
            if layer != self._layer:
                self._layer, self._begun = layer, pages.time + 1
            found = pages.find(*asked)
            pages.held = pages.use(found)  # so that they do not go while others come
            missing = np.unique(pages.page(*asked)[found == 0])
            frames = self._take(len(missing))
            pages.held = np.concatenate((pages.held.reshape(-1), frames))
        if len(missing):
            self._bring(layer, missing, frames, passing=passing)
        with self._lock:
            self._waited += len(missing)
            if passing:
                pages.used_at[frames] = 0
            frames = pages.find(*asked) - 1
            self._guessed += int(np.count_nonzero(self._hinted[np.unique(frames)]))
            self._hinted[frames] = False
            self._reach(frames)
        return Places(self._keys, self._values, torch.from_numpy(frames).to(self.device))

    def _reach(self, frames: Numbers) -> None:
        """What is computed from here on sees what was copied into frames."""
        if frames.size:
            self._copies.reach(int(self._copy_of[frames].max()))

    def _bring(self, layer: int, wanted: Numbers, frames: Numbers, *, passing: bool = False) -> Numbers:
        """Begin to copy pages of a layer into frames that were taken for them.

        Without the lock: the tier below may wait for its disk, and who writes there releases blocks here.
        """
        done, size = 0, self.below.window
        try:
            while done < len(wanted):
                some = slice(done, done + size)
                slots, heads = (torch.from_numpy(x) for x in self._pages.parts(layer, wanted[some]))
                source = self.below.locate(layer, slots, heads, passing=passing)
                into = torch.from_numpy(frames[some])
                self._copy_of[frames[some]] = self._copies.up(source, into, self._keys, self._values)
                done += len(wanted[some])
        finally:
            with self._lock:
                self._pages.put(wanted[:done], frames[:done])
                self._hinted[frames] = False
                self._pages.untake(frames[done:])
        return frames

    def pools(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Pages come and go."""
        return None

    def let_go(self) -> None:
        with self._lock:
            self._pages.held = self._pages.held[:0]
        self.below.let_go()

    def prefetch(self, layer: int, slots: Tensor, heads: Tensor) -> None:
        """Blocks of a layer may be located soon: begin to bring up what is missing and not on the disk.

        Args:
            slots, heads: int64, broadcast together; the first ones go first if there is not room for all
        """
        pages, asked = self._pages, (layer, slots.numpy(), heads.numpy())
        with self._lock:
            found = pages.find(*asked)
            pages.use(found)
            missing = in_order(pages.page(*asked)[found == 0])
            there = self.below.at_hand(layer, *(torch.from_numpy(x) for x in pages.parts(layer, missing)))
            missing = missing[there.numpy()]
            pages.room(len(missing), before=self._begun)
            missing = missing[: min(len(pages.idle), pages.window)]
            frames = pages.take(len(missing))
        if len(missing):
            self._hinted[self._bring(layer, missing, frames)] = True
            self._foreseen += len(missing)

    def _take(self, count: int) -> Numbers:
        """Frames for new pages; raises OutOfBlocks."""
        self._settle_done()
        if not self._pages.room(count):
            for slot in list(self._descents):
                self._settle(slot)
            if not self._pages.room(count):
                raise OutOfBlocks("the device's memory is full of blocks that are in use")
        return self._pages.take(count)

    def traffic(self) -> Traffic:
        below = self.below.traffic()
        came = self._waited + self._foreseen
        waited = {self.below.name: max(0, self._waited - sum(below.waited.values())), **below.waited}
        told = Traffic({(self.below.name, self.name): came, **below.moved}, waited, self._foreseen, self._guessed)
        self._waited = self._foreseen = self._guessed = 0
        return told

    def yield_bytes(self, count: int) -> None:
        """Landmarks have a part of their own: a device does not take back a piece of a tensor."""


def in_order(pages: Numbers) -> Numbers:
    """Each page once, where it came first."""
    _, first = np.unique(pages, return_index=True)
    return pages[np.sort(first)]
