"""Blocks: which slots hold them, what they contain, and how many sessions share each one.

Owns reference counts over a tier, and the address of each sealed block by its hash: what is there is not kept twice.
With an archive, what is sealed is written to its disk. Does not know what a session or a token is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from cache.archive import Archive, Freed, Sealed
from cache.layout import Bytes, CacheLayout
from cache.tiers import PagedTier, Places, Tier, WindowTier
from cache.vectors import Meter


class BlockStore:
    """Reference-counted slots of a tier.

    Args:
        archive: where sealed blocks go; the tier must be one over its disk
    """

    def __init__(self, tier: Tier, archive: Archive | None = None) -> None:
        self.tier = tier
        self.archive = archive
        self._heads = torch.arange(tier.layout.kv_heads)
        self.landmarks = Meter()
        """Memory that the indexes of all sessions take."""
        self._lock = threading.RLock()  # the archive's thread gives blocks back, too
        self._references: dict[int, int] = {}
        self._slots: dict[bytes, int] = {}  # of sealed blocks, by hash
        self._hashes: dict[int, bytes] = {}
        self._unseen: set[int] = set()  # blocks of an earlier process that nobody has looked at
        if archive is not None:
            self._over_disk.pending = lambda: self.behind > 0
            archive.start(tier.units, self._written)

    @property
    def _over_disk(self) -> PagedTier:
        """The tier that lies right over the archive's disk."""
        tier = self.tier.below if isinstance(self.tier, WindowTier) else self.tier
        assert isinstance(tier, PagedTier)
        return tier

    @property
    def layout(self) -> CacheLayout:
        return self.tier.layout

    @property
    def free(self) -> int:
        """Blocks that can still be allocated."""
        return self.tier.capacity - self.tier.used

    @property
    def behind(self) -> int:
        """Sealed blocks that stay in memory until they are written: each will leave room for another one."""
        return 0 if self.archive is None else self.archive.behind

    @property
    def most_landmarks(self) -> int:
        """Bytes that indexes may take."""
        return self.tier.most_landmarks

    @property
    def longest(self) -> int:
        """Blocks of the longest session."""
        if self.archive is None or not self.archive.disk.entry_bytes:
            return self.tier.capacity
        return min(self.tier.capacity, self.most_landmarks // self.archive.disk.entry_bytes)

    # -- who has them ----------------------------------------------------------------------------------------

    def allocate(self) -> int:
        """A new block with one reference; raises OutOfBlocks at once, also where room is to come (`behind`)."""
        slot = self.tier.allocate()
        with self._lock:
            self._references[slot] = 1
        return slot

    def share(self, slots: list[int]) -> None:
        """One more reference to each slot."""
        with self._lock:
            for slot in slots:
                self._references[slot] += 1

    def release(self, slots: list[int]) -> None:
        """One reference less; a slot without any goes back to the tier."""
        with self._lock:
            for slot in slots:
                self._references[slot] -= 1
                if not self._references[slot]:
                    self._free(slot)

    def _free(self, slot: int) -> None:
        del self._references[slot]
        self._forget(slot)
        self.tier.release(slot)

    def _forget(self, slot: int) -> None:
        """A block is not to be found by its hash any more."""
        self._unseen.discard(slot)
        digest = self._hashes.pop(slot, None)
        if digest is not None:
            del self._slots[digest]
            if self.archive is not None:
                self.archive.put(Freed(slot))

    def lose(self, slot: int) -> None:
        """A stored block is damaged: what is computed in its stead lies elsewhere, whoever else has this one."""
        with self._lock:
            self._forget(slot)

    def seal(self, slot: int, digest: bytes, entry: Bytes) -> int:
        """A block is full and will not change.

        Args:
            digest: hash of everything that it depends on
            entry: what its index keeps of it (entry_bytes,)

        Returns:
            The slot to keep, with this one's reference: another one if an equal block is there already.
        """
        with self._lock:
            known = self._slots.get(digest, slot)
            if known != slot and not self._sound(known, digest):
                self._forget(known)
                known = slot
            self._slots[digest] = known
            if known != slot:
                self.share([known])
                self.release([slot])
            elif slot not in self._hashes:
                self._hashes[slot] = digest
                self.tier.sealed(slot)
                if self.archive is not None:
                    self._references[slot] += 1  # the archive's, until it is written
                    self.archive.put(Sealed(slot, digest, entry))
            return known

    def known(self, digest: bytes) -> int | None:
        """The slot of the sealed block with this hash, with one more reference; None if there is none to be used."""
        with self._lock:
            slot = self._slots.get(digest)
            if slot is None or not self._sound(slot, digest):
                return None
            self.share([slot])
            return slot

    def _sound(self, slot: int, digest: bytes) -> bool:
        """Whether a sealed block can be used; what an earlier process left is looked at before its first use."""
        if slot in self._unseen:
            assert self.archive is not None
            if not self.archive.disk.recognised(slot, digest):
                return False
            self._unseen.discard(slot)
        return True

    def claim(self, found: dict[bytes, int]) -> None:
        """Take over what lies on the disk from an earlier process, before anything is allocated; nobody has it yet."""
        self._over_disk.claim(sorted(found.values()))
        self._slots = dict(found)
        self._hashes = {slot: digest for digest, slot in found.items()}
        self._unseen = set(self._hashes)
        self._references = dict.fromkeys(self._hashes, 1)

    def slot(self, digest: bytes) -> int | None:
        """Where the block with this hash lies."""
        return self._slots.get(digest)

    def balance(self) -> None:
        """Let the tier leave the memory that indexes take."""
        self.tier.yield_bytes(self.landmarks.bytes)

    def _written(self, slot: int) -> None:
        self._over_disk.written(slot)
        self.release([slot])

    # -- what is in them -------------------------------------------------------------------------------------

    def write(self, layer: int, slots: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        """See Tier.write."""
        self.tier.write(layer, slots, offsets, keys, values)

    def units(self, slot: int) -> Bytes:
        """See Tier.units."""
        return self.tier.units(slot)

    def fill(self, slot: int, units: Bytes) -> None:
        """See Tier.fill."""
        self.tier.fill(slot, units)

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of whole blocks: slots (blocks,) -> keys, values, each (kv_heads, blocks, block_size, head_dim)."""
        return joined([places.copied() for places in self._locate_all(layer, slots, self._heads[:, None])], dim=1)

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copies, per head: slots (kv_heads, …) -> keys, values, each (kv_heads, …, block_size, head_dim)."""
        size = self.tier.window
        if slots.numel() <= size:
            return self.locate(layer, slots).copied()
        heads = self._heads.view(-1, *[1] * (slots.dim() - 1)).expand_as(slots)
        asked = zip(slots.flatten().split(size), heads.flatten().split(size), strict=True)
        keys, values = joined([self.tier.locate(layer, *some, passing=True).copied() for some in asked], dim=0)
        return keys.unflatten(0, slots.shape), values.unflatten(0, slots.shape)

    def locate(self, layer: int, slots: Tensor) -> Places:
        """Per head: where the blocks in slots (kv_heads, …) lie; see Tier.locate."""
        return self.tier.locate(layer, slots, self._heads.view(-1, *[1] * (slots.dim() - 1)))

    def let_go(self) -> None:
        """See Tier.let_go."""
        self.tier.let_go()

    @property
    def foresees(self) -> bool:
        """Whether `prefetch` does anything."""
        return isinstance(self.tier, WindowTier)

    def prefetch(self, layer: int, slots: Tensor) -> None:
        """Per head: the blocks in slots (kv_heads, blocks) may be located soon, the first ones most likely."""
        if isinstance(self.tier, WindowTier):
            self.tier.prefetch(layer, slots.T, self._heads)  # a block of all heads before the next one

    def head_keys(self, layer: int, slots: Tensor, head: int) -> Tensor:
        """Keys of one head: slots (blocks,) -> (blocks, block_size, head_dim)."""
        pieces = self._locate_all(layer, slots, self._heads[head], passing=True)
        return torch.cat([places.keys.index_select(0, places.at) for places in pieces])

    def _locate_all(self, layer: int, slots: Tensor, heads: Tensor, *, passing: bool = False) -> Iterator[Places]:
        """Where any number of blocks (blocks,) lie, in pieces that fit into the tier's window."""
        size = max(1, self.tier.window // heads.numel())
        for some in slots.split(size) if len(slots) > size else (slots,):
            yield self.tier.locate(layer, some, heads, passing=passing or len(slots) > size)

    def check(self, tables: list[list[int]]) -> None:
        """Assert that the counts are those of the given block tables and that nothing is lost."""
        if self.archive is not None and self.archive.failure is None:
            assert self.archive.flush(30), "the archive does not get done"
        counted: dict[int, int] = {}
        for slot in (slot for table in tables for slot in table):
            counted[slot] = counted.get(slot, 0) + 1
        assert counted == self._references, "reference counts differ from the sessions' tables"
        assert self.tier.used == len(counted), "the tier holds blocks that no session has"
        assert self._slots == {digest: slot for slot, digest in self._hashes.items()}, "two addresses for one block"
        assert self._hashes.keys() <= counted.keys(), "an address outlives its block"


def joined(pieces: list[tuple[Tensor, Tensor]], dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values of all pieces."""
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat([keys for keys, _ in pieces], dim), torch.cat([values for _, values in pieces], dim)
