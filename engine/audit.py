"""The online audit: which (token, layer, query head) are checked against exact attention, and what was found.

Owns the sampling, the result of a request, and the rule that raises blocks_per_head. Samples follow from tokens and
their positions alone, so an audited answer is the same however it was batched. Plain Python: the exact attention
itself is computed in `engine/attention/exact.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import fsum

from cache import Session

MASK = (1 << 64) - 1
WINDOW, MEMORY = 8, 64
"""After so many further samples a session's mass is judged, by so many of its latest samples."""
MOST_BLOCKS = 4096
"""No further is blocks_per_head raised; also the most that a request may set."""


def mixed(number: int) -> int:
    """A number whose bits are as good as random (splitmix64, Steele et al. 2014)."""
    number = (number + 0x9E3779B97F4A7C15) & MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)


def samples(first: int, tokens: Sequence[int], rate: float) -> dict[int, int]:
    """Which of the positions first, first + 1, … are audited, each with a random number that draws its layer and head.

    The tokens have a say: from positions alone, all short sessions of a server would be audited at the same places.
    """
    if rate <= 0:
        return {}
    limit = int(rate * (MASK + 1))
    numbers = {position: mixed(position ^ token << 40) for position, token in enumerate(tokens, first)}
    return {position: number for position, number in numbers.items() if number < limit}


@dataclass
class Audit:
    """What the audit found for one answer.

    Attributes:
        rate: share of the answer's positions that are audited, one layer and head each
        masses: share of exact attention that the blocks read had, for each sample
    """

    rate: float = 1.0
    masses: list[float] = field(default_factory=list)


class Regulator:
    """Raises a session's blocks_per_head until the audited mass holds.

    The session remembers its latest samples, so that short answers are judged together, and one that long has held is
    not raised by a few bad samples.

    Args:
        least: mass to hold
        blocks_per_head: where to begin
    """

    def __init__(self, least: float, blocks_per_head: int, session: Session) -> None:
        self.blocks_per_head = blocks_per_head
        self._least = least
        self._session = session
        self._seen = 0

    def observe(self, masses: list[float]) -> int:
        """The number to go on with, given all masses of the answer so far."""
        latest, blocks = self._session.audited, self.blocks_per_head
        for mass in masses[self._seen :]:
            latest.append((blocks, mass))
            del latest[:-MEMORY]
            found = [mass for with_blocks, mass in latest if with_blocks == blocks]
            if len(found) % WINDOW == 0 and fsum(found) / len(found) < self._least:
                self._raise()
                break
        self._seen = len(masses)
        return self.blocks_per_head

    def _raise(self) -> None:
        if self.blocks_per_head < MOST_BLOCKS:
            self.blocks_per_head = min(MOST_BLOCKS, max(1, 2 * self.blocks_per_head))
            self._session.blocks_per_head = self.blocks_per_head
