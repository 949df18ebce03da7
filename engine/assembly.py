"""What an engine is put together from, given a model and the operator's choices: attention, sessions, description."""

from __future__ import annotations

import dataclasses
import hashlib

from cache import BlockStore, CacheLayout, SessionRegistry
from engine.attention import FusedAttention, ReferenceAttention, RetrievalSettings
from engine.config import EngineConfig
from engine.description import ModelDescription
from engine.huggingface import LoadedModel


def choose_attention(model: LoadedModel, settings: RetrievalSettings, layout: CacheLayout) -> ReferenceAttention:
    """The fastest implementation that serves this cache."""
    kind = FusedAttention if FusedAttention.serves(layout, settings) else ReferenceAttention
    return kind(model.layers, layout, settings)


def summary_widths(model: LoadedModel, settings: RetrievalSettings) -> list[int | None]:
    """Channels of a block's summary in each layer; None where a window leaves nothing to look up."""
    width = settings.rule.width(model.head_dim)
    return [None if layer.window else width for layer in model.layers]


def registry(model: LoadedModel, settings: RetrievalSettings, store: BlockStore) -> SessionRegistry:
    """Sessions of this model; the fingerprint keeps other models' blocks apart."""
    fingerprint = hashlib.blake2b(repr((model.name, settings, store.layout)).encode()).digest()
    return SessionRegistry(store, summary_widths(model, settings), fingerprint)


def describe(
    model: LoadedModel, settings: RetrievalSettings, config: EngineConfig, store: BlockStore
) -> ModelDescription:
    """The description of a model that is served this way."""
    return ModelDescription(
        **dataclasses.asdict(settings),
        model=model.name,
        vocab_size=model.vocab_size,
        eos_token_ids=model.eos_token_ids,
        landmark_token_id=model.landmarks.token_id if model.landmarks else None,
        block_size=store.layout.block_size,
        max_session_tokens=config.session_limit(model, store.layout, store.tier.capacity, bounded=settings.bounded),
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=sum(p.numel() for p in model.model.parameters()),
    )
