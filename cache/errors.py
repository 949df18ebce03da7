"""What can go wrong in the cache.

CacheError
└── OutOfBlocks   no slot is free for a new block
"""

from __future__ import annotations


class CacheError(Exception):
    """Base of all errors that the cache raises."""


class OutOfBlocks(CacheError):
    """No slot is free for a new block."""
