"""Exact attention of sampled queries over every key of their session: the audit of what was read.

Each key is scored block after block, from where retrieval would see it, without looking at what was chosen.
It is computed inline: a second team of threads on the same cores would cost the step more than a sample does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cache import CacheLayout
from engine.attention.base import LayerGeometry, RetrievalSettings
from engine.attention.choosing import Choice
from engine.attention.parts import Scoring
from engine.attention.rows import Rows
from engine.step import Span, Step

PIECE = 4096
"""Keys that are scored at once: as many as stay in a processor's cache while they are copied and read."""


@dataclass(frozen=True)
class Read:
    """What rows have read.

    Attributes:
        recent: blocks before each query's own
        shared: so many first blocks
        choice: what was fetched between them; None if nothing was
    """

    recent: int
    shared: int
    choice: Choice | None = None

    def blocks(self, row: int, kv_head: int, own: int, device: torch.device) -> Tensor:
        """Which of blocks 0, …, own one query of a head has read: bool (own + 1,)."""
        blocks = torch.arange(own + 1, device=device)
        read = (blocks < self.shared) | (blocks >= own - self.recent)
        if self.choice is not None:
            read[self.choice.blocks[kv_head, row][self.choice.valid[kv_head, row]]] = True
        return read


class ExactAudit:
    """Compares what was read with exact attention, for the tokens whose turn it is.

    Only layers that choose what they read are audited: not those with a window, nor dense ones, nor the first one of
    a model with trained landmarks, where all landmarks tie.

    Args:
        layers, layout, settings: as the attention's
    """

    def __init__(self, layers: list[LayerGeometry], layout: CacheLayout, settings: RetrievalSettings) -> None:
        self._layout = layout
        self._settings = settings
        first = max(1 if settings.gated else 0, settings.dense_layers)
        self._layers = [index for index, layer in enumerate(layers) if index >= first and layer.window is None]

    def __call__(self, layer: int, rows: Rows, span: Span, step: Step, scoring: Scoring, read: Read) -> None:
        """Put the shares of exact attention that were read on the step's report, and on the span's audit."""
        if not span.audit_rate or layer not in self._layers:
            return
        begun, heads = time.perf_counter(), self._layout.kv_heads * rows.queries.shape[2]
        for position, number in span.samples.items():
            place, head = divmod(number % (len(self._layers) * heads), heads)
            row = position - int(rows.positions[0])
            if self._layers[place] == layer and 0 <= row < len(rows.positions):
                mass = self._covered(layer, rows, row, head, scoring, read)
                step.report.audited.append(mass)
                if span.audit is not None:
                    span.audit.masses.append(mass)
        step.report.audit_seconds += time.perf_counter() - begun

    def _covered(self, layer: int, rows: Rows, row: int, head: int, scoring: Scoring, read: Read) -> float:
        """Share of exact attention that one query head has read."""
        blocks = read.blocks(row, head // rows.queries.shape[2], int(rows.own[row]), rows.positions.device)
        if bool(blocks.all()):
            return 1.0
        masses = log_masses(layer, rows, row, head, scoring, read.recent, bounded=self._settings.bounded)
        return float(masses.softmax(-1)[blocks].sum())


def log_masses(layer: int, rows: Rows, row: int, head: int, scoring: Scoring, recent: int, *, bounded: bool) -> Tensor:
    """Logarithm of each block's share of one query's softmax, up to a common constant: (own block + 1,) fp32.

    Args:
        row: which of the rows' queries
        head: query head, counted over all KV heads
        recent: blocks before the query's own that it sees at their true distance
        bounded: whether the blocks before them all stand at one distance
    """
    position, kv_head = int(rows.positions[row]), head // rows.queries.shape[2]
    own, offset = divmod(position, rows.block_size)
    far = max(0, own - recent) if bounded else 0
    query, far_query = (q[kv_head, row, head % q.shape[2]] for q in (rows.queries, rows.far_queries))
    pieces = []
    for first, last in cut(0, far, own + 1, max(1, PIECE // rows.block_size)):
        slots = rows.session.slots_between(first, last)
        keys = rows.session.store.head_keys(layer, slots, kv_head).float()  # (blocks, B, D)
        if last <= far:
            pieces.append(keys @ far_query)
        else:
            distance = position - torch.arange(first, last, device=query.device) * rows.block_size
            seen = rows.rotation(query.expand(last - first, -1), distance)  # (blocks, D)
            pieces.append((keys @ seen[:, :, None]).squeeze(-1))
    scores = scoring.cap(torch.cat(pieces))  # (blocks, B)
    scores[own, offset + 1 :] = -torch.inf
    if not scoring.gated:
        return scores.logsumexp(-1)
    masses = scores[:, -1].clone()  # a block weighs what its landmark says
    masses[own] = scores[own, :-1].logsumexp(-1)
    return masses


def cut(first: int, middle: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """[first, middle) and [middle, last) in pieces of at most `size`."""
    for start, end in ((first, middle), (middle, last)):
        for at in range(start, end, size):
            yield at, min(at + size, end)
