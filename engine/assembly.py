"""What an engine is put together from, given a model and the operator's choices: attention, sessions, description."""

from __future__ import annotations

import hashlib

from cache import BlockStore, CacheLayout, IndexShape, SessionRegistry
from engine.attention import FusedAttention, ReferenceAttention, RetrievalSettings
from engine.config import EngineConfig
from engine.description import ModelDescription
from engine.huggingface import LoadedModel


def choose_attention(model: LoadedModel, settings: RetrievalSettings, layout: CacheLayout) -> ReferenceAttention:
    """The fastest implementation that serves this cache."""
    kind = FusedAttention if FusedAttention.serves(layout, settings) else ReferenceAttention
    return kind(model.layers, layout, settings)


def index_shapes(model: LoadedModel, settings: RetrievalSettings) -> list[IndexShape | None]:
    """What is kept of a block in each layer; None where a window leaves nothing to look up, or all is read."""
    shape = settings.index_shape(model.head_dim)
    dense = range(settings.dense_layers)
    return [None if layer.window or index in dense else shape for index, layer in enumerate(model.layers)]


def registry(model: LoadedModel, settings: RetrievalSettings, store: BlockStore) -> SessionRegistry:
    """Sessions of this model; the fingerprint keeps other models' blocks apart."""
    fingerprint = hashlib.blake2b(repr((model.name, settings, store.layout)).encode()).digest()
    return SessionRegistry(store, index_shapes(model, settings), fingerprint)


def describe(
    model: LoadedModel, settings: RetrievalSettings, config: EngineConfig, store: BlockStore
) -> ModelDescription:
    """The description of a model that is served this way."""
    return ModelDescription(
        model=model.name,
        vocab_size=model.vocab_size,
        eos_token_ids=model.eos_token_ids,
        landmark_token_id=model.landmarks.token_id if model.landmarks else None,
        retrieval=settings,
        block_size=store.layout.block_size,
        max_session_tokens=config.session_limit(model, store.layout, store.tier.capacity, bounded=settings.bounded),
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=sum(p.numel() for p in model.model.parameters()),
    )
