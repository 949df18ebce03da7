"""A session's indexes on their way back from the disk, a part at a time, beside whatever else runs.

Holds the session's blocks until it is closed, whatever becomes of the session. Decides nothing: the registry gives the
session what came back, and forgets what is damaged.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cache.errors import DamagedBlock
from cache.index import BlockIndex
from cache.session import Session, unpack

PART = 256
"""Blocks that are brought back at once: some hundredths of a second, and some megabytes."""


class Waking:
    """See the module.

    Args:
        session: parked
        indexes: of its first `count` blocks, as another session has them; they are changed here alone
        count: blocks that these know already

    Attributes:
        count: blocks that its indexes know
        damage: why not all of them will; None if nothing is known to be wrong
    """

    def __init__(self, session: Session, indexes: list[BlockIndex | None], count: int = 0) -> None:
        assert session.store.archive is not None, "only what is on a disk comes back from there"
        self.session, self.indexes, self.count = session, indexes, count
        self.damage: DamagedBlock | OSError | None = None
        self.begun = time.perf_counter()
        self._store, self._disk = session.store, session.store.archive.disk
        self._blocks, self._hashes = session.blocks[:], session.hashes[1:]
        self._store.share(self._blocks)

    @property
    def left(self) -> int:
        """Blocks that are still to come back."""
        return len(self._blocks) - self.count

    def step(self) -> bool:
        """Bring back the next part; False if it was the last one. Needs no lock."""
        part = slice(self.count, self.count + PART)
        blocks, hashes = self._blocks[part], self._hashes[part]
        good = self._expected(blocks, hashes)
        entries = self._disk.entries(blocks[:good], hashes[:good])
        if len(entries) < good:
            self.damage = DamagedBlock(blocks[len(entries)], "its landmarks have a wrong checksum")
        unpack(self.indexes, entries)
        self.count += len(entries)
        return self.damage is None and self.left > 0

    def _expected(self, blocks: Sequence[int], hashes: Sequence[bytes]) -> int:
        """How many blocks, from the first one on, have the headers that they should have."""
        for count, (slot, digest) in enumerate(zip(blocks, hashes, strict=True)):
            try:
                self._disk.expect(slot, digest)
            except (DamagedBlock, OSError) as error:
                self.damage = error
                return count
        return len(blocks)

    def close(self) -> None:
        """Let go of the blocks."""
        self._store.release(self._blocks)
        self._blocks = []
