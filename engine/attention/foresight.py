"""What a layer is likely to read next: what it read for the token before. Knows no query.

While a layer's result goes through the rest of the model, the next layer's blocks come up to the device. A hint that
is wrong costs a copy; what is read follows from queries alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cache import Session
from engine.step import Span


class Foresight:
    """Remembers what each session's layers chose last.

    Args:
        recent: blocks before a query's own that each layer always reads
        sinks: first blocks that are always read
    """

    def __init__(self, recent: Sequence[int], sinks: int) -> None:
        self._recent = recent
        self._sinks = sinks
        self._chosen: WeakKeyDictionary[Session, dict[int, Tensor]] = WeakKeyDictionary()

    def remember(self, layer: int, session: Session, blocks: Tensor) -> None:
        """A layer has chosen these block numbers (kv_heads, blocks) for a session's latest position."""
        if session.store.foresees:
            self._chosen.setdefault(session, {})[layer] = blocks.clone()  # a view would keep all of a step's

    def hint(self, layer: int, spans: Sequence[Span]) -> None:
        """A layer has all that it reads: the next one's turn comes, after the last one the first one's of a next step.

        Of spans of one position alone: of many, the blocks of one tell little.
        """
        following = (layer + 1) % len(self._recent)
        for span in spans:
            chosen = self._chosen.get(span.session, {}).get(following)
            if chosen is not None and len(span.token_ids) == 1:
                wanted = self._wanted(following, span, chosen)
                span.session.store.prefetch(following, span.session.slots(wanted))

    def _wanted(self, layer: int, span: Span, chosen: Tensor) -> Tensor:
        """What a layer always reads and what it read (kv_heads, blocks), of the blocks that there are."""
        own = len(span.session.blocks) - 1  # a session may have been cut since it was remembered
        always = [*range(min(self._sinks, own)), *range(max(0, own - self._recent[layer]), own)]
        fixed = torch.tensor(always, dtype=torch.int64).expand(len(chosen), -1)
        return torch.cat((fixed, chosen.cpu().clamp(max=own)), dim=1)
