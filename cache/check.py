"""Verify a folder of stored sessions, read as a whole, while no server uses it; mend what can be mended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cache.archive import CATALOGUE, lock, place
from cache.catalogue import Catalogue
from cache.errors import StoreError
from cache.tiers import DiskTier


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        sessions, tokens, blocks: how many there are
        problems: what is wrong, as sentences
        mended: what was done about it, as sentences
    """

    sessions: int
    tokens: int
    blocks: int
    problems: list[str]
    mended: list[str]


def check(folder: Path, *, repair: bool = False) -> Checked:
    """Read everything in a folder; raises StoreError if there is no store, or if a server uses it.

    A damaged block is taken out of the catalogue by `repair`: a server computes it again from the session's text.
    """
    if not (folder / CATALOGUE).is_file():
        raise StoreError(f"{folder} holds no sessions: there is no {CATALOGUE} in it")
    handle = lock(folder)
    try:
        catalogue = Catalogue(folder / CATALOGUE)
        try:
            return _check(folder, catalogue, repair=repair)
        finally:
            catalogue.close()
    finally:
        os.close(handle)


def _check(folder: Path, catalogue: Catalogue, *, repair: bool) -> Checked:
    problems = catalogue.check()
    mended = catalogue.repair() if repair and problems else []
    blocks = 0
    for fingerprint in catalogue.fingerprints():
        rows = catalogue.blocks(fingerprint)
        blocks += len(rows)
        for slot, problem in damages(place(folder, fingerprint), rows):
            problems.append(problem)
            if repair:
                catalogue.remove_blocks(fingerprint, [slot])
                mended.append(f"Block {slot} will be computed again.")
    sessions = catalogue.sessions()
    tokens = sum(catalogue.length(session.id) for session in sessions)
    return Checked(len(sessions), tokens, blocks, problems, mended)


def damages(folder: Path, rows: dict[bytes, int]) -> Iterator[tuple[int, str]]:
    """Slots of blocks that are not what the catalogue says, and what is wrong with each."""
    if not rows:
        return
    try:
        disk = DiskTier.found(folder, max(rows.values()) + 1)
    except StoreError as error:
        yield from ((slot, str(error)) for slot in rows.values())
        return
    for digest, slot in sorted(rows.items(), key=lambda row: row[1]):
        problem = disk.damage(slot, digest)
        if problem is not None:
            yield slot, problem
    disk.close()
