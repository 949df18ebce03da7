"""Blocks: which slots hold them and how many sessions share each one.

Owns reference counts over a tier. Does not know what a session or a token is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache.layout import CacheLayout
from cache.tiers import Places, Tier


class BlockStore:
    """Reference-counted slots of a tier."""

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self._heads = torch.arange(tier.layout.kv_heads, device=tier.device)
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
        """Copies of whole blocks: slots (blocks,) -> keys, values, each (kv_heads, blocks, block_size, head_dim)."""
        heads = self._heads[:, None]
        pieces = [self.tier.locate(layer, some, heads).copied() for some in slots.split(self._blocks_at_once)]
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat([keys for keys, _ in pieces], dim=1), torch.cat([values for _, values in pieces], dim=1)

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copies, per head: slots (kv_heads, …) -> keys, values, each (kv_heads, …, block_size, head_dim)."""
        return self.locate(layer, slots).copied()

    def locate(self, layer: int, slots: Tensor) -> Places:
        """Per head: where the blocks in slots (kv_heads, …) lie; see Tier.locate."""
        return self.tier.locate(layer, slots, self._heads.view(-1, *[1] * (slots.dim() - 1)))

    def head_keys(self, layer: int, slots: Tensor, head: int) -> Tensor:
        """Keys of one head: slots (blocks,) -> (blocks, block_size, head_dim)."""
        pieces = [self.tier.locate(layer, some, self._heads[head]) for some in slots.split(self._blocks_at_once)]
        return torch.cat([places.keys.index_select(0, places.at) for places in pieces])

    @property
    def _blocks_at_once(self) -> int:
        """Blocks of which all heads can be located together."""
        return max(1, self.tier.window // self.layout.kv_heads)

    def check(self, tables: list[list[int]]) -> None:
        """Assert that the counts are those of the given block tables and that nothing is lost."""
        counted: dict[int, int] = {}
        for slot in (slot for table in tables for slot in table):
            counted[slot] = counted.get(slot, 0) + 1
        assert counted == self._references, "reference counts differ from the sessions' tables"
        assert self.tier.used == len(counted), "the tier holds blocks that no session has"
