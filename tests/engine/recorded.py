"""What went through a bench's attention, and the attention that follows from it key by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import Step
from tests.models import Bench, save_model

Case = tuple[str, dict[str, Any], dict[str, Any]]
"""A family (or "landmarks"), changes of the model, and of the cache."""


def bench_of(case: Case, folder: Path, usual: dict[str, Any]) -> Bench:
    """Trained landmarks come with their geometry; the cache of others is set up as `usual`, but for the changes."""
    family, changes, cache = case
    trained = family == "landmarks"
    model = save_model("llama" if trained else family, folder / family, landmarks=trained, **changes)
    return Bench(model, **(cache if trained else usual | cache))


def capped(scores: Tensor, cap: float | None) -> Tensor:
    return cap * (scores / cap).tanh() if cap else scores


class Recorded:
    """One session of a bench.

    Attributes:
        q, k: unrotated, by layer (positions, heads, dim); q is scaled
        caps: of scores, by layer
        fetched: blocks (kv_heads, fetched) by layer and position where some were chosen, -1 where there was none
    """

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench = bench
        self.q: dict[int, Tensor] = {}
        self.k: dict[int, Tensor] = {}
        self.caps: dict[int, float | None] = {}
        self.fetched: dict[tuple[int, int], Tensor] = {}
        attention: Any = bench.runner._attention
        self._attention, audit = attention, attention._audit
        bench.runner._attention = self

        def auditing(layer: int, rows: Any, span: Any, step: Any, scoring: Any, read: Any) -> None:
            if read.choice is not None:
                for row, position in enumerate(rows.positions.tolist()):
                    chosen = read.choice.blocks[:, row].masked_fill(~read.choice.valid[:, row], -1)
                    self.fetched[layer, position] = chosen
            audit(layer, rows, span, step, scoring, read)

        monkeypatch.setattr(attention, "_audit", auditing)

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step, scaling: float, softcap: float | None
    ) -> Tensor:
        for seen, new in ((self.q, q * scaling), (self.k, k.clone())):  # layers put theirs where others' were
            seen[layer] = torch.cat((seen[layer], new)) if layer in seen else new
        self.caps[layer] = softcap
        output: Tensor = self._attention(layer, q, k, v, step, scaling, softcap)
        return output

    def listed(self, *given: object) -> None:
        """Every layer is recorded."""

    # -- key by key ------------------------------------------------------------------------------------------

    def near(self, layer: int, position: int) -> range:
        """Blocks that are always read at their true distance: the recent ones, and all behind a window."""
        own = position // self.bench.layout.block_size
        windowed = self.bench.model.layers[layer].window is not None
        return range(0 if windowed else max(0, own - self.bench.settings.recent_blocks), own + 1)

    def read(self, layer: int, position: int, head: int) -> set[int]:
        """Blocks that a query head read: all where nothing was chosen."""
        near = self.near(layer, position)
        if (layer, position) not in self.fetched:
            return set(range(near.stop))
        fetched = self.fetched[layer, position][self._kv_head(layer, head)].tolist()
        sinks = range(min(self.bench.settings.sink_blocks, near.stop))
        return {*near, *sinks, *fetched} - {-1}

    def scores(self, layer: int, position: int, head: int) -> Tensor:
        """Of all keys up to the query's own (position + 1,), not capped."""
        size, near = self.bench.layout.block_size, self.near(layer, position)
        stands = torch.arange(position + 1)
        if self.bench.settings.positions == "bounded":  # far blocks stand where the last one before the near ones does
            stands = torch.where(stands // size < near.start, (near.start - 1) * size + stands % size, stands)
        rotation, keys = self.bench.model.layers[layer].rotation, self.k[layer][: position + 1]
        query = rotation(self.q[layer][position, head], torch.tensor(position) - stands.min())
        return rotation(keys[:, self._kv_head(layer, head)], stands - stands.min()) @ query

    def masses(self, layer: int, position: int, head: int) -> list[float]:
        """Of all blocks up to the query's own, in exact attention."""
        size, window = self.bench.layout.block_size, self.bench.model.layers[layer].window
        at, own = torch.arange(position + 1), position // size
        weights = capped(self.scores(layer, position, head), self.caps[layer]).exp()
        if self.bench.settings.gated:  # a block of the past weighs what its landmark does, the own block what its text
            landmark = at % size == size - 1
            weights[landmark == (at // size == own)] = 0.0
        if window is not None:
            weights[position - at >= window] = 0.0
        return torch.zeros(own + 1).index_add_(0, at // size, weights).tolist()

    def _kv_head(self, layer: int, head: int) -> int:
        return head * self.k[layer].shape[1] // self.q[layer].shape[1]
