"""Blocks: which slots hold them and how many sessions share each one.

Owns reference counts over a tier. Does not know what a session or a token is.
"""

from __future__ import annotations

from torch import Tensor

from cache.layout import CacheLayout
from cache.tiers import Tier


class BlockStore:
    """Reference-counted slots of a tier."""

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self._references: dict[int, int] = {}

    @property
    def layout(self) -> CacheLayout:
        return self.tier.layout

    @property
    def free(self) -> int:
        """Blocks that can still be allocated."""
        return self.tier.capacity - self.tier.used

    def allocate(self) -> int:
        """A new block with one reference; raises OutOfBlocks."""
        slot = self.tier.allocate()
        self._references[slot] = 1
        return slot

    def share(self, slots: list[int]) -> None:
        """One more reference to each slot."""
        for slot in slots:
            self._references[slot] += 1

    def release(self, slots: list[int]) -> None:
        """One reference less; a slot without any goes back to the tier."""
        for slot in slots:
            self._references[slot] -= 1
            if not self._references[slot]:
                del self._references[slot]
                self.tier.release(slot)

    def write(self, layer: int, slots: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        """See Tier.write."""
        self.tier.write(layer, slots, offsets, keys, values)

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """See Tier.read."""
        return self.tier.read(layer, slots)

    def pools(self, layer: int) -> tuple[Tensor, Tensor]:
        """See Tier.pools."""
        return self.tier.pools(layer)

    def head_keys(self, layer: int, slots: Tensor, head: int) -> Tensor:
        """See Tier.head_keys."""
        return self.tier.head_keys(layer, slots, head)

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """See Tier.gather."""
        return self.tier.gather(layer, slots)

    def check(self, tables: list[list[int]]) -> None:
        """Assert that the counts are those of the given block tables and that nothing is lost."""
        counted: dict[int, int] = {}
        for slot in (slot for table in tables for slot in table):
            counted[slot] = counted.get(slot, 0) + 1
        assert counted == self._references, "reference counts differ from the sessions' tables"
        assert self.tier.used == len(counted), "the tier holds blocks that no session has"
