"""What an engine is put together from, given a model and the operator's choices: attention, sessions, description."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from cache import Archive, BlockStore, CacheLayout, IndexShape, SessionRegistry, StoreError, WindowTier
from engine.attention import FusedAttention, ReferenceAttention, RetrievalSettings
from engine.budgets import budgets, make_tier
from engine.config import EngineConfig
from engine.description import ModelDescription
from engine.errors import InvalidParameter
from engine.huggingface import LoadedModel
from engine.passes import Beside
from engine.runner import ModelRunner
from engine.stats import EngineStats, TierStats

SAMPLED = 4096
"""Numbers of each tensor that tell a model from others."""


def choose_attention(model: LoadedModel, settings: RetrievalSettings, layout: CacheLayout) -> ReferenceAttention:
    """The fastest implementation that serves this cache."""
    if model.device.type == "cpu" and FusedAttention.serves(layout, settings):
        return FusedAttention(model.layers, layout, settings)
    return ReferenceAttention(model.layers, layout, settings, model.device)


def open_beside(
    model: LoadedModel, settings: RetrievalSettings, config: EngineConfig, store: BlockStore, tell: Callable[[], None]
) -> Beside | None:
    """The thread that reads prompts beside decoding steps, where two passes may run at once and have cores for it."""
    threads, tier = torch.get_num_threads(), store.tier
    if threads < 2 or not tier.lasting or tier.device.type != "cpu":
        return None
    runner = ModelRunner(model, choose_attention(model, settings, tier.layout))
    return Beside(runner, threads, config.decode_share, tell)


def index_shapes(model: LoadedModel, settings: RetrievalSettings, layout: CacheLayout) -> list[IndexShape | None]:
    """What is kept of a block in each layer; None where a window leaves nothing to look up, or all is read."""
    shape = settings.index_shape(model.head_dim, layout.block_size)
    dense = range(settings.dense_layers)
    first = replace(shape, tiled=False)  # trained landmarks are all the same there, and never looked at
    shapes = [each.in_layer(layer) for layer, each in enumerate([first, *[shape] * (len(model.layers) - 1)])]
    return [None if layer.window or index in dense else shapes[index] for index, layer in enumerate(model.layers)]


def identity(model: LoadedModel) -> bytes:
    """What tells models apart, 32 bytes: names, shapes and a sample of each tensor."""
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(model.model.state_dict().items()):
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // SAMPLED)].float().cpu().contiguous()
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(sample.numpy().tobytes())
    return digest.digest()


def fingerprint(identity: bytes, settings: RetrievalSettings, layout: CacheLayout) -> bytes:
    """What tells blocks apart that may not be shared, 32 bytes: the model, and how it reads and stores."""
    return hashlib.blake2b(identity + repr((settings, layout)).encode(), digest_size=32).digest()


def open_registry(model: LoadedModel, settings: RetrievalSettings, config: EngineConfig) -> SessionRegistry:
    """The sessions of a model, in memory or as a folder has them; raises InvalidParameter."""
    layout, who = config.layout(model), identity(model)
    shapes = index_shapes(model, settings, layout)
    mark = fingerprint(who, settings, layout)
    kept = [shape for shape in shapes if shape is not None]
    entry = layout.kv_heads * sum(shape.block_bytes for shape in kept)
    given = budgets(config, model, layout.kv_heads * sum(shape.memory_bytes(model.device) for shape in kept))
    if config.disk_kv_path is None:
        return SessionRegistry(BlockStore(make_tier(layout, given, model, None)), shapes, mark, who)
    folder = Path(config.disk_kv_path)
    try:
        archive = Archive(folder, layout, entry, config.disk_bytes(folder, layout), mark)
        return SessionRegistry(BlockStore(make_tier(layout, given, model, archive.disk), archive), shapes, mark, who)
    except StoreError as error:
        raise InvalidParameter("disk_kv_path", str(error)) from error


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
        max_session_tokens=config.session_limit(model, store.layout, store.longest, bounded=settings.bounded),
        dtype=config.weights if config.weights != "auto" else str(model.dtype).removeprefix("torch."),
        parameters=sum(p.numel() for p in model.model.parameters()),
    )


def snapshot(registry: SessionRegistry, running: int, waiting: int) -> EngineStats:
    """What there is to tell of an engine with so many requests."""
    archive, active = registry.store.archive, len(registry.busy)
    return EngineStats(
        running,
        waiting,
        {"active": active, "idle": len(registry) - active},
        tiers(registry.store),
        dict(registry.evictions),
        registry.damaged,
        archive.behind if archive else 0,
        bool(archive and archive.failure),
    )


def tiers(store: BlockStore) -> dict[str, TierStats]:
    """What lies where."""
    tier, archive = store.tier, store.archive
    found = {tier.name: TierStats(tier.used_bytes + store.landmarks.bytes, tier.memory_bytes, tier.used)}
    if isinstance(tier, WindowTier):
        below = tier.below
        found[below.name] = TierStats(below.used_bytes, below.memory_bytes, tier.used)
    if archive is not None:
        disk = archive.disk
        found[disk.name] = TierStats(disk.used_bytes, disk.capacity_bytes, tier.used - archive.behind)
    return found
