"""Jobs that consist of others, so that threads need not wait for each other in between; `sharing` lays them out.

Their arguments are words: how many others there are, and of each the address of its function, that of its arguments,
the number after its last one as the joint job counts, and the address of what asks for what it reads, or 0.
"""

from __future__ import annotations

import functools

from cache.compiling import job, kernels

team = kernels("team")
WORDS = 32
"""Bytes of those that tell of one."""


def row(arguments: int, first: int, last: int) -> None:
    """All of them for numbers first, …, last - 1, one after the other."""
    for other in range(team.read(arguments)):
        at = arguments + 8 + WORDS * other
        team.call(team.read(at), team.read(at + 8), first, last)


def side(arguments: int, first: int, last: int) -> None:
    """Each of them for those of the numbers that are its own."""
    start = 0
    for other in range(team.read(arguments)):
        at = arguments + 8 + WORDS * other
        end = team.read(at + 16)
        if first < end and start < last:
            team.call(team.read(at), team.read(at + 8), max(first, start) - start, min(last, end) - start)
        start = end


def ask(arguments: int, first: int, last: int) -> None:
    """Ask for what the first number of `side` reads."""
    start = 0
    for other in range(team.read(arguments)):
        at = arguments + 8 + WORDS * other
        end = team.read(at + 16)
        if start <= first < end:
            team.call(team.read(at + 24), team.read(at + 8), first - start, min(last, end) - start)
        start = end


@functools.cache
def in_row() -> int:
    """Address of `row` as a job."""
    return job(row)


@functools.cache
def side_by_side() -> int:
    """Address of `side` as a job."""
    return job(side)


@functools.cache
def ask_first() -> int:
    """Address of `ask` as a job."""
    return job(ask)
