"""Counts what the tokens of an answer, or of a query, read, over all layers and heads."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from cache import CacheLayout
from engine.requests import Passage, RetrievalReport


class Tally:
    """Attention mass by block; one unit is the whole attention of one query head for one position."""

    def __init__(self) -> None:
        self.blocks: defaultdict[int, float] = defaultdict(float)
        self.sinks = 0.0
        self.local = 0.0
        self.estimated = 0.0

    def add(self, blocks: list[int], masses: list[float], together: int) -> None:
        """Mass of fetched blocks; a block may stand several times.

        Args:
            together: how many stand side by side that one head fetched for one token
        """
        for block, mass in zip(blocks, masses, strict=True):
            if mass:
                self.blocks[block] += mass

    def report(self, layout: CacheLayout, passages: int) -> RetrievalReport:
        """Shares of the whole mass; neighbouring blocks among the most read ones are joined to one passage."""
        fetched = sum(self.blocks.values())
        whole = fetched + self.sinks + self.local + self.estimated or 1.0
        most_read = sorted(self.blocks, key=lambda block: -self.blocks[block])[: 2 * passages]
        found = [self._passage(run, layout, whole) for run in runs(sorted(most_read))]
        found.sort(key=lambda passage: -passage.share)
        shares = (fetched / whole, self.sinks / whole, self.local / whole, self.estimated / whole)
        return RetrievalReport(tuple(found[:passages]), *shares)

    def _passage(self, run: list[int], layout: CacheLayout, whole: float) -> Passage:
        size = layout.text_per_block
        share = sum(self.blocks[block] for block in run) / whole
        return Passage(run[0] * size, (run[-1] + 1) * size, share)


class Lookup(Tally):
    """What a query looks up: what a head gives a block, times the block's part of all that it gives those it fetched.

    A head that does not know what it looks for reads all of them alike, and has little say; sinks, recent blocks and
    what is estimated have none. Shares of a report are of what was counted.

    Args:
        held: text tokens in which it looks; what follows are its own
    """

    def __init__(self, held: int) -> None:
        super().__init__()
        self._held = held

    def add(self, blocks: list[int], masses: list[float], together: int) -> None:
        for start in range(0, len(blocks), max(1, together)):
            side_by_side = masses[start : start + together]
            whole = sum(side_by_side) or 1.0
            super().add(blocks[start : start + together], [mass * mass / whole for mass in side_by_side], together)

    def report(self, layout: CacheLayout, passages: int) -> RetrievalReport:
        self.sinks = self.local = self.estimated = 0.0
        for block in [block for block in self.blocks if block * layout.text_per_block >= self._held]:
            del self.blocks[block]
        found = super().report(layout, passages)
        inside = tuple(replace(passage, end=min(passage.end, self._held)) for passage in found.passages)
        return replace(found, passages=inside)


def runs(numbers: list[int]) -> list[list[int]]:
    """Ascending numbers, cut where one is missing."""
    cut: list[list[int]] = []
    for number in numbers:
        if cut and number == cut[-1][-1] + 1:
            cut[-1].append(number)
        else:
            cut.append([number])
    return cut
