"""How pairs and sections come to stand for blocks: by what, and when.

Nobody looks at them in a session of few blocks, and most sessions stay short: so they are made not long before somebody
does. What is usual takes long to tell, and all pairs at once would hold others up; so each layer of a session begins at
another block, and makes some for each block that comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cache.summary import Summary
from cache.usual import BEGINNING, Usual

HASTE = 4
"""Blocks that are made ready for each one that comes."""


@dataclass(frozen=True)
class Gathering:
    """See the module.

    Attributes:
        usual: tells from the first `BEGINNING` blocks what is usual of all
        gather: makes what stands for pairs and for sections from what stands for their blocks, and from what is usual
        pair_widths: channels of a pair's landmark, in parts as those of a block
        few: up to so many blocks nobody looks at pairs
        begin: behind so many blocks they begin to be made ready
    """

    usual: Callable[[Summary], Usual]
    gather: Callable[[Summary, Usual], tuple[Summary, Summary]]
    pair_widths: tuple[int, ...]
    few: int
    begin: int = BEGINNING

    def in_layer(self, layer: int) -> Gathering:
        """Begins at a block of the layer's own, so late that all are ready when somebody looks."""
        latest = self.few * (HASTE - 1) // HASTE
        return replace(self, begin=max(BEGINNING, min(self.few // 2 + layer, latest)))

    def ready(self, count: int) -> int:
        """How many of so many blocks pairs and sections can be looked at for, as far as these are whole."""
        if count > self.few and count >= BEGINNING:
            return count
        return max(0, min(count, HASTE * (count - self.begin)))
