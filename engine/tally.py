"""Counts what the tokens of an answer, or of a query, read, over all layers and heads."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from cache import CacheLayout
from engine.requests import Passage, RetrievalReport


class Tally:
    """Attention mass by block; one unit is the whole attention of one query head for one position."""

    by_token = False
    """Whether what one head read for one token is told by itself, where several can be told together."""

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

    def add_sink(self, layer: int, block: int, masses: list[list[float]]) -> None:
        """Mass of a block that is always read, by token and head."""
        self.sinks += sum(map(sum, masses))

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
    """What a query looks up: what a head gives a block beyond what it would give any.

    Of the blocks that it fetched for a token: beyond an equal share of what it gave all of them, so that a head that
    does not know what it looks for has no say. Of a block that it always reads: beyond what it gives it on average.
    Recent blocks, which are the query's own, and what is estimated do not count. Shares are of what was counted.

    Args:
        held: text tokens in which it looks; what follows are its own
    """

    by_token = True

    def __init__(self, held: int) -> None:
        super().__init__()
        self._held = held
        self._always: defaultdict[tuple[int, int], list[list[float]]] = defaultdict(list)

    def add(self, blocks: list[int], masses: list[float], together: int) -> None:
        for start in range(0, len(blocks), max(1, together)):
            side_by_side = masses[start : start + together]
            equal = sum(side_by_side) / max(2, together)
            super().add(blocks[start : start + together], [max(0.0, mass - equal) for mass in side_by_side], together)

    def add_sink(self, layer: int, block: int, masses: list[list[float]]) -> None:
        self._always[layer, block] += masses

    def report(self, layout: CacheLayout, passages: int) -> RetrievalReport:
        """Passages of the blocks that have more than the average one, each with the block that follows.

        Otherwise all of a short session would be one passage; and what is looked up often follows what it is found by.
        """
        size, beyond = layout.text_per_block, self._beyond()
        held = {block: mass for block, mass in beyond.items() if mass and block * size < self._held}
        average = sum(held.values()) / max(1, len(held))
        found = Tally()
        found.blocks = defaultdict(float, {block: mass for block, mass in held.items() if mass >= average})
        found.local = sum(held.values()) - sum(found.blocks.values())
        report = found.report(layout, passages)
        inside = tuple(replace(passage, end=min(passage.end + size, self._held)) for passage in report.passages)
        return replace(report, passages=inside)

    def _beyond(self) -> dict[int, float]:
        """All blocks, with what counts of them."""
        whole = self.blocks.copy()
        for (_, block), tokens in self._always.items():
            for masses in zip(*tokens, strict=True):  # of one head, by token
                mean = sum(masses) / len(masses)
                whole[block] += sum(max(0.0, mass - mean) for mass in masses)
        return whole


def runs(numbers: list[int]) -> list[list[int]]:
    """Ascending numbers, cut where one is missing."""
    cut: list[list[int]] = []
    for number in numbers:
        if cut and number == cut[-1][-1] + 1:
            cut[-1].append(number)
        else:
            cut.append([number])
    return cut
