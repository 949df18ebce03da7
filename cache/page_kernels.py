"""Asks the system for pages of memory, by the one write that changes nothing whoever else writes there meanwhile."""

from __future__ import annotations

from cache.compiling import compiled
from cache.team_kernels import replace

PAGE = 4096
"""Bytes of the smallest page; where pages are larger, most of these writes find theirs already."""


@compiled
def touch(start: int, end: int) -> None:
    """Have the pages of memory from one address to another; the first one is a multiple of 8."""
    for address in range(start, end, PAGE):
        replace(address, 0, 0)  # adding nothing would be left out by the compiler
