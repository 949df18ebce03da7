"""A session: append-only tokens, the blocks that hold their keys and values, and the landmarks of the sealed ones.

Owns the mapping from positions to slots. Does not know a model: tokens are numbers, keys are tensors.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from cache.errors import DamagedBlock
from cache.index import BlockIndex, IndexShape
from cache.layout import Bytes, CacheLayout
from cache.readings import Reading, Readings
from cache.store import BlockStore
from cache.turns import Turns


class Session:
    """Tokens [0, len(tokens)) of which the first `computed` have their keys and values stored.

    Args:
        id: the server's name for it
        store: where its blocks live
        shapes: what is kept of a sealed block, per layer; None for a layer that has no index
        salt: what keeps equal texts of different owners or models apart in the hash chain
    """

    def __init__(self, id: str, store: BlockStore, shapes: Sequence[IndexShape | None], salt: bytes = b"") -> None:
        self.id = id
        self.store = store
        self.tokens: array[int] = array("l")
        self.computed = 0
        self.blocks: list[int] = []
        self.hashes: list[bytes] = [hashlib.blake2b(salt, digest_size=16).digest()]
        self._shapes = shapes
        self.indexes = self._empty_indexes()
        self.created = self.used = time.time()
        self.parent: str | None = None
        self.blocks_per_head: int | None = None  # what an audit has raised it to
        self.audited: list[tuple[int, float]] = []  # blocks per head, and the mass that they had, lately
        self.tenant = ""
        self.pinned = False  # never dropped to make room
        self.ttl: float | None = None  # seconds without use after which it is deleted
        self.turns = Turns()
        self.readings = Readings()
        self.parked = False  # its indexes are not in memory
        # As long as the tier could ever need; the operating system backs only the part that is written.
        self._table = torch.empty(store.tier.capacity, dtype=torch.int64)

    @property
    def layout(self) -> CacheLayout:
        return self.store.layout

    @property
    def positions(self) -> int:
        """Positions whose keys and values are stored."""
        return self.layout.positions(self.computed)

    @property
    def sealed(self) -> int:
        """Full blocks."""
        return self.positions // self.layout.block_size

    def append(self, tokens: Sequence[int], reading: Reading | None = None) -> None:
        """Add text tokens that are read so; their keys and values are computed later."""
        if len(tokens):
            self.readings.begin(len(self.tokens), reading)
        self.tokens.extend(tokens)
        self.used = time.time()

    def follow(self, other: Session) -> None:
        """Add the tokens that another session has beyond those of this one, which are its first."""
        self.tokens.extend(other.tokens[len(self.tokens) :])
        self.readings = other.readings.copy()

    def begin_turn(self, tokens: Sequence[int], reading: Reading | None = None) -> None:
        """Add what a request gives; what is added until the next one begins is its answer."""
        start = len(self.tokens)
        self.turns.begin(start, start + len(tokens), self.blocks_per_head)
        self.append(tokens, reading)

    def cut(self, text: int) -> None:
        """Forget all but the first `text` tokens, as if there had never been more; the open block is computed again."""
        if text < len(self.tokens):
            self.rewind(text // self.layout.text_per_block)
            if (turn := self.turns.at(text)) is not None:
                self.blocks_per_head = turn.blocks_per_head
            self.audited = []
            self.turns.cut(text)
            self.readings.cut(text)
            del self.tokens[text:]
        self.used = time.time()

    def reserve(self, text: int) -> None:
        """Allocate the blocks that the first `text` tokens need; raises OutOfBlocks and then holds what it got."""
        while len(self.blocks) < self.layout.blocks(text):
            slot = self.store.allocate()
            self._table[len(self.blocks)] = slot
            self.blocks.append(slot)

    def slots(self, blocks: Tensor) -> Tensor:
        """Slots of block numbers, the same shape int64: on the CPU, as all addresses are."""
        return self._table[blocks.cpu()]

    def slots_between(self, first: int, last: int) -> Tensor:
        """Slots of blocks first, …, last - 1: (last - first,)."""
        return self._table[first:last]

    def advance(self, text: int) -> None:
        """The first `text` tokens are stored now; newly sealed blocks get their hashes, and an equal block's place."""
        self.computed = text
        first, sealed = len(self.hashes) - 1, self.sealed
        if first == sealed:
            return
        entries = self._entries(first, sealed)
        for block, entry in zip(range(first, sealed), entries, strict=True):
            self.hashes.append(self._hash(block))
            slot = self.store.seal(self.blocks[block], self.hashes[-1], entry)
            self.blocks[block] = slot
            self._table[block] = slot
        self.store.balance()

    def _hash(self, block: int) -> bytes:
        """Hash of a sealed block, chained over everything before it."""
        first, last = block * self.layout.text_per_block, (block + 1) * self.layout.text_per_block
        return chain(self.hashes[block], self.tokens[first:last], self.readings.mark(first, last))

    # -- going and coming back -------------------------------------------------------------------------------

    def _empty_indexes(self) -> list[BlockIndex | None]:
        facts = (self.store.landmarks, self.store.tier.device)
        return [BlockIndex(self.layout.kv_heads, shape, *facts) if shape else None for shape in self._shapes]

    def _entries(self, first: int, last: int) -> Bytes:
        """As `entries`, for who stores them; nothing if nobody does."""
        return np.empty((last - first, 0), np.uint8) if self.store.archive is None else self.entries(first, last)

    def entries(self, first: int, last: int) -> Bytes:
        """What the indexes keep of blocks first, …, last - 1: (blocks, entry_bytes); raises DamagedBlock if parked."""
        if self.parked:
            return self._stored_entries(first, last)
        parts = [np.empty((last - first, 0), np.uint8)]
        return np.concatenate(parts + [index.pack(first, last) for index in self.indexes if index], axis=1)

    def _stored_entries(self, first: int, last: int) -> Bytes:
        assert self.store.archive is not None
        entries = self.store.archive.disk.entries(self.blocks[first:last], self.hashes[first + 1 : last + 1])
        if len(entries) < last - first:
            raise DamagedBlock(self.blocks[first + len(entries)], "its landmarks have a wrong checksum")
        return entries

    def units(self, block: int) -> Bytes:
        """Keys and values of a sealed block, as Tier.units gives them; raises DamagedBlock."""
        if self.parked:
            assert self.store.archive is not None
            try:
                self.store.archive.disk.expect(self.blocks[block], self.hashes[block + 1])
            except OSError as error:
                raise DamagedBlock(self.blocks[block], str(error)) from error
        return self.store.units(self.blocks[block])

    @property
    def entry_bytes(self) -> int:
        """What the indexes keep of a block."""
        return sum(index.block_bytes for index in self.indexes if index)

    def take_in(self, units: Bytes, entries: Bytes) -> None:
        """Have the next blocks as another session of the same text computed them.

        Args:
            units: keys and values (blocks, layers, kv_heads, bytes), each block as Tier.units gave it
            entries: what its indexes kept of them (blocks, entry_bytes)

        Raises:
            OutOfBlocks: it holds those that there was room for
        """
        first = len(self.blocks)
        try:
            for block, entry in zip(units, entries, strict=True):
                self._take_in(block, entry)
        finally:
            unpack(self.indexes, entries[: len(self.blocks) - first])
            self.computed = len(self.blocks) * self.layout.text_per_block
            self.store.balance()

    def _take_in(self, units: Bytes, entry: Bytes) -> None:
        number = len(self.blocks)
        digest = self._hash(number)
        slot = self.store.known(digest)
        if slot is None:
            slot = self.store.allocate()
            self.store.fill(slot, units)
            slot = self.store.seal(slot, digest, entry if self.store.archive else entry[:0])
        self.blocks.append(slot)
        self._table[number] = slot
        self.hashes.append(digest)

    def park(self) -> None:
        """Leave the indexes to the disk."""
        assert not self.parked, "it is parked already"
        self.indexes = self._empty_indexes()
        self.parked = self.sealed > 0

    def wake(self, indexes: list[BlockIndex | None]) -> None:
        """Have indexes again, of all of its blocks."""
        assert all(index.count == self.sealed for index in indexes if index), "what they lack must be forgotten first"
        self.indexes, self.parked = indexes, False

    def indexes_of(self, sealed: int) -> list[BlockIndex | None]:
        """Indexes of the first sealed blocks that go on by themselves, sharing memory; if parked, of none."""
        if self.parked:
            return self._empty_indexes()
        return [index and index.fork(sealed) for index in self.indexes]

    def sensible(self, entries: Bytes) -> bool:
        """Whether entries (blocks, entry_bytes) are what indexes can have kept."""
        return all(index.sensible(mine) for index, mine in parts(self.indexes, entries))

    def rewind(self, sealed: int) -> None:
        """Forget what is computed beyond the first sealed blocks; the tokens stay, to be computed again."""
        keep = min(sealed, self.sealed)
        self.computed = keep * self.layout.text_per_block
        gone = self.blocks[keep:]
        del self.blocks[keep:], self.hashes[keep + 1 :]
        if not self.parked:
            self.indexes = [index.fork(keep) if index and index.count > keep else index for index in self.indexes]
        self.parked = self.parked and keep > 0
        self.store.release(gone)

    def adopt(self, blocks: list[int], hashes: list[bytes]) -> None:
        """Take over sealed blocks of these hashes that are there already; its tokens begin with theirs."""
        assert not self.blocks, "it has blocks already"
        self.store.share(blocks)
        self.blocks = blocks
        self._table[: len(blocks)] = torch.tensor(blocks, dtype=torch.int64)
        self.hashes += hashes
        self.computed = len(blocks) * self.layout.text_per_block

    def take_over(self, prefix: Session) -> None:
        """Have what another session of the same tenant has computed of the same text; the other one ends."""
        assert not self.blocks, "it has blocks already"
        self.blocks, self._table, self.hashes = prefix.blocks, prefix._table, prefix.hashes
        self.indexes, self.computed, self.parked = prefix.indexes, prefix.computed, prefix.parked
        prefix.blocks = []

    def fork(self, id: str, sealed: int | None = None) -> Session:
        """A session with the same past that shares the sealed blocks; one of a parked session is parked.

        Args:
            sealed: keep only this many sealed blocks and none of the later tokens; None keeps everything (what an
                audit found, too), and what lies in the open block is computed again (fewer than `block_size` tokens)
        """
        keep = self.sealed if sealed is None else sealed
        size = self.layout.text_per_block
        fork = Session(id, self.store, [None] * len(self.indexes))
        fork._shapes = self._shapes
        fork.tokens = self.tokens[:] if sealed is None else self.tokens[: keep * size]
        fork.readings = self.readings.copy()
        fork.readings.cut(len(fork.tokens))
        fork.computed = keep * size
        fork.blocks = self.blocks[:keep]
        fork._table[:keep] = self._table[:keep]
        fork.hashes = self.hashes[: keep + 1]
        fork.indexes, fork.parked = self.indexes_of(keep), self.parked and keep > 0
        fork.parent, fork.tenant, fork.ttl = self.id, self.tenant, self.ttl
        if sealed is None:  # who shares no more than a prefix reads as if it had computed it
            fork.blocks_per_head, fork.audited = self.blocks_per_head, self.audited[:]
            fork.turns = self.turns.copy()
        self.store.share(fork.blocks)
        return fork

    def trim(self) -> None:
        """Give back blocks that were reserved and not written."""
        spare = self.blocks[self.layout.blocks(self.computed) :]
        del self.blocks[len(self.blocks) - len(spare) :]
        self.store.release(spare)

    def close(self) -> None:
        """Give back all blocks; the session must not be used again."""
        self.store.release(self.blocks)
        self.blocks = []


def unpack(indexes: Sequence[BlockIndex | None], entries: Bytes) -> None:
    """Append blocks to indexes, as `Session.entries` gave them."""
    for index, mine in parts(indexes, entries):
        index.unpack(mine)


def parts(indexes: Sequence[BlockIndex | None], entries: Bytes) -> Iterator[tuple[BlockIndex, Bytes]]:
    """Each index with its part of entries."""
    start = 0
    for index in indexes:
        if index is not None:
            end = start + index.block_bytes
            yield index, entries[:, start:end]
            start = end


def chain(previous: bytes, tokens: array[int], mark: bytes = b"") -> bytes:
    """Hash of a block of tokens, read as `Readings.mark` tells, that follows everything which `previous` stands for."""
    return hashlib.blake2b(previous + tokens.tobytes() + mark, digest_size=16).digest()
