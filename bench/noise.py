"""Caches that are filled with random keys and values instead of by reading a text, which changes no cost."""

from __future__ import annotations

import time

import torch
from transformers import DynamicCache, PreTrainedModel

from cache import BlockStore, DeviceTier, Session
from engine import EngineConfig, LoadedModel, ModelRunner, Span, Step, choose_attention, index_shapes
from engine.step import with_landmarks

FILL = 4096
"""Positions that are written at once while a cache is filled."""


class Cairn:
    """One session of `context` text tokens, filled with noise."""

    def __init__(self, model: LoadedModel, config: EngineConfig, context: int, tokens: int) -> None:
        self.layout, self.settings = config.layout(model), config.retrieval(model)
        needed = self.layout.blocks(context + tokens + 1) * self.layout.block_bytes
        self.store = BlockStore(DeviceTier(self.layout, needed))
        self.attention = choose_attention(model, self.settings, self.layout)
        self.runner = ModelRunner(model, self.attention)
        self.landmark = model.landmarks.token_id if model.landmarks else None
        self.session = Session("bench", self.store, index_shapes(model, self.settings, self.layout))
        self.session.append([7] * (context + tokens))
        self.session.reserve(context + tokens)
        self._fill(context)

    def span(self, start: int, end: int) -> Span:
        text = self.session.tokens[start:end].tolist()
        ids = with_landmarks(text, start, self.landmark, self.layout)
        return Span(self.session, start, end, ids, self.settings.blocks_per_head)

    def _fill(self, context: int) -> None:
        """Write random keys and values through the ordinary path, so that the index is real too."""
        for start in range(0, context, FILL):
            span = self.span(start, min(start + FILL, context))
            shape = (len(span.token_ids), self.layout.kv_heads, self.layout.head_dim)
            for layer in range(self.layout.layers):
                self.attention.store(layer, span, torch.randn(shape), torch.randn(shape))
            self.session.advance(span.end)

    def decode(self) -> float:
        """Seconds of one token."""
        return self.step(1)

    def step(self, tokens: int) -> float:
        """Seconds of a step that computes the next `tokens` text tokens."""
        begun = time.perf_counter()
        start = self.session.computed
        span = self.span(start, start + tokens)
        self.runner.run(Step([span]), [len(span.token_ids) - 1]).argmax(-1)
        return time.perf_counter() - begun


def filled_cache(model: PreTrainedModel, context: int) -> DynamicCache:
    """transformers' cache with `context` random keys and values."""
    config = model.config
    cache, shape = DynamicCache(config=config), (1, config.num_key_value_heads, context, config.head_dim)
    for layer in range(config.num_hidden_layers):
        cache.update(torch.randn(shape, dtype=model.dtype), torch.randn(shape, dtype=model.dtype), layer)
    return cache
