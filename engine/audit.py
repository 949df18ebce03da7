"""The online audit: which (position, layer, query head) are checked against exact attention, and what was found.

Owns the sampling, the result of a request, and the rule that raises blocks_per_head. Samples follow from positions
alone, so an audited answer is the same however its tokens were batched. Plain Python: the exact attention itself
is computed in `engine/attention/exact.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MASK = (1 << 64) - 1
WINDOW = 8
"""Samples over which the mass must hold before a session's blocks_per_head is let be."""
MOST_BLOCKS = 4096


def mixed(number: int) -> int:
    """A number whose bits are as good as random (splitmix64, Steele et al. 2014)."""
    number = (number + 0x9E3779B97F4A7C15) & MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)


def sampled(position: int, rate: float, heads: int) -> int | None:
    """Which of `heads` (a layer's and query head's number together) is audited at a position; None at most of them."""
    if rate <= 0:
        return None
    drawn = mixed(position)
    if drawn / (MASK + 1) >= rate:
        return None
    return mixed(drawn) % heads


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
    """Raises blocks_per_head until the audited mass holds.

    Args:
        least: mass to hold
        blocks_per_head: where to begin
    """

    def __init__(self, least: float, blocks_per_head: int) -> None:
        self.blocks_per_head = blocks_per_head
        self._least = least
        self._seen = 0

    def observe(self, masses: list[float]) -> int:
        """The number to go on with, given all masses so far; looks at each window of samples once."""
        window = masses[self._seen : self._seen + WINDOW]
        if len(window) == WINDOW:
            self._seen += WINDOW
            if sum(window) / WINDOW < self._least:
                self.blocks_per_head = min(MOST_BLOCKS, max(1, 2 * self.blocks_per_head))
        return self.blocks_per_head
