"""What can go wrong in the cache.

CacheError
├── OutOfBlocks    no slot is free for a new block
├── StoreError     a folder of stored sessions cannot be used
└── DamagedBlock   a stored block is not what it should be
"""

from __future__ import annotations


class CacheError(Exception):
    """Base of all errors that the cache raises."""


class OutOfBlocks(CacheError):
    """No slot is free for a new block."""


class StoreError(CacheError):
    """A folder of stored sessions cannot be used; the message says why."""


class DamagedBlock(CacheError):
    """A stored block is not what it should be; it has to be computed again."""

    def __init__(self, slot: int, reason: str) -> None:
        super().__init__(f"the stored block {slot} is damaged: {reason}")
        self.slot = slot
