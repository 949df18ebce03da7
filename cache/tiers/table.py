"""Which page lies in which frame: a page is a head of a block in a layer, a frame is room for one.

What goes when room is needed is what was not used for longest (LRU), but for what is pinned. Numbers alone: knows
neither where frames lie nor where pages come from. Who shares it between threads locks it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cache.layout import CacheLayout

Numbers = NDArray[np.int64]
PARTS = 64
"""Pages are let go in so many parts of the memory, which is cheaper than one by one."""


class PageTable:
    """The pages of blocks in slots 0, …, capacity - 1, and frames for some of them."""

    def __init__(self, layout: CacheLayout, capacity: int, frames: int) -> None:
        self._heads = layout.kv_heads
        self._layers = layout.layers
        self._capacity = capacity
        self.frames = self.limit = frames
        # Frame of each (layer, slot, head), plus one: the system hands out zeros, and only for what is touched.
        self.places = np.zeros(layout.layers * capacity * layout.kv_heads, np.int32)
        self.owner = np.full(frames, -1, np.int64)  # page of each frame
        self.pinned = np.zeros(frames, bool)
        self.held: Numbers = np.empty(0, np.int64)  # frames that are read now: they stay, too, until others are
        self.used_at = np.zeros(frames, np.int64)
        self.time = 0
        self.idle = list(range(frames - 1, -1, -1))  # frames without a page

    # -- numbers of pages ------------------------------------------------------------------------------------

    def page(self, layer: int, slots: Numbers, heads: Numbers) -> Numbers:
        return (layer * self._capacity + slots) * self._heads + heads

    def parts(self, layer: int, pages: Numbers) -> tuple[Numbers, Numbers]:
        """Slots and heads of a layer's pages."""
        slots, heads = np.divmod(pages - layer * self._capacity * self._heads, self._heads)
        return slots, heads

    def of_block(self, slot: int) -> Numbers:
        """All pages of a block (layers * kv_heads,)."""
        layers = np.arange(self._layers)[:, None]
        return ((layers * self._capacity + slot) * self._heads + np.arange(self._heads)).reshape(-1)

    @property
    def block_pages(self) -> int:
        return self._layers * self._heads

    # -- where they lie --------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Frames with a page."""
        return self.limit - len(self.idle)

    @property
    def window(self) -> int:
        """Pages that can be in frames at once, whatever else is: beside what is pinned, and a block that may come."""
        left = self.limit - int(np.count_nonzero(self.pinned)) - self.block_pages
        return max(1, min(self.limit // 4, left))

    def find(self, layer: int, slots: Numbers, heads: Numbers) -> Numbers:
        """Frames plus one of pages, 0 where there is none."""
        return self.places[self.page(layer, slots, heads)].astype(np.int64)

    def frames_of(self, slot: int) -> Numbers:
        """Frames of the pages of a block, as far as they have any."""
        frames = self.places[self.of_block(slot)].astype(np.int64)
        return frames[frames > 0] - 1

    def use(self, found: Numbers) -> Numbers:
        """What was found is used now, later than all before: its frames, those that are missing left out."""
        self.time += 1
        frames: Numbers = found[found > 0] - 1
        self.used_at[frames] = self.time
        return frames

    # -- coming and going ------------------------------------------------------------------------------------

    def put(self, pages: Numbers, frames: Numbers) -> None:
        """Pages lie in frames that were taken, and are used now."""
        self.places[pages] = frames + 1
        self.owner[frames] = pages
        self.used_at[frames] = self.time

    def room(self, count: int, before: int | None = None) -> bool:
        """Whether `count` frames are free, after letting go what was not used for longest if need be.

        Args:
            before: what was used since then stays; None is now
        """
        if len(self.idle) < count:
            end = self.time if before is None else before
            free = (self.owner >= 0) & ~self.pinned & (self.used_at < end)
            free[self.held] = False
            gone = np.flatnonzero(free)
            wanted = max(count - len(self.idle), self.limit // PARTS)
            if len(gone) > wanted:
                gone = gone[np.argpartition(self.used_at[gone], wanted)[:wanted]]
            self.drop(gone)
        return len(self.idle) >= count

    def take(self, count: int) -> Numbers:
        """Frames for new pages; there must be room."""
        assert count <= len(self.idle), "more frames were asked for than there is room"
        frames = self.idle[len(self.idle) - count :]
        del self.idle[len(self.idle) - count :]
        return np.array(frames, np.int64)

    def untake(self, frames: Numbers) -> None:
        """Frames that were taken are not needed."""
        self.idle += frames.tolist()

    def drop(self, frames: Numbers) -> None:
        """Forget pages; their frames are free."""
        self.places[self.owner[frames]] = 0
        self.owner[frames] = -1
        self.pinned[frames] = False
        self.idle += frames[frames < self.limit].tolist()

    def resize(self, limit: int) -> bool:
        """Use frames 0, …, limit - 1 alone; False if what is pinned or read lies beyond: then nothing has changed."""
        if limit > self.limit:
            self.idle += range(self.limit, limit)
            self.limit = limit
        elif self.pinned[limit : self.limit].any() or (self.held >= limit).any():
            return False
        above = np.arange(limit, self.limit)
        self.limit = limit
        self.idle = [frame for frame in self.idle if frame < limit]
        self.drop(above[self.owner[above] >= 0])
        return True
