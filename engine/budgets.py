"""How much memory keys and values get, on the device and in host memory, and the tiers that are made of it."""

from __future__ import annotations

from dataclasses import dataclass

from cache import CacheLayout, DeviceTier, DiskTier, LowerTier, PagedTier, Tier, WindowTier, copies_for
from engine.config import EngineConfig
from engine.device import free_memory
from engine.errors import InvalidParameter
from engine.huggingface import LoadedModel

ROUNDING = 2
"""Landmarks of short sessions take up to so many times their bytes on a device: segments double (cache/vectors.py)."""


@dataclass(frozen=True)
class Budgets:
    """Bytes of memory.

    Attributes:
        device: where attention reads
        host: of a tier below; None where there is none, as on a CPU, whose memory is the host's
        landmarks: of the device, what is left to landmarks if there is a tier below
    """

    device: int
    host: int | None = None
    landmarks: int = 0


def budgets(config: EngineConfig, model: LoadedModel, entry_bytes: int) -> Budgets:
    """What the operator gives, or what is free; raises InvalidParameter if too few blocks fit.

    Args:
        entry_bytes: what the indexes keep of a block
    """
    layout = config.layout(model)
    both = config.kv_bytes is not None and config.host_kv_bytes is not None
    if model.device.type == "cpu" and not both:
        given = config.kv_bytes or config.host_kv_bytes or free_memory() // 2
        return Budgets(enough(config, layout, "kv_bytes", given, steps=config.disk_kv_path is not None))
    device = config.kv_bytes or free_memory(model.device) * 3 // 4
    host = config.host_kv_bytes or free_memory() // 2
    host = enough(config, layout, "host_kv_bytes", host, steps=config.disk_kv_path is not None)
    landmarks = device // 2
    if config.disk_kv_path is None:  # nothing can be dropped to make room for them
        if entry_bytes:
            host = min(host, landmarks // (ROUNDING * entry_bytes) * layout.block_bytes)
        landmarks = min(landmarks, ROUNDING * entry_bytes * (host // layout.block_bytes))
    enough(config, layout, "kv_bytes", device - landmarks, steps=True)
    return Budgets(device, host, landmarks)


def enough(config: EngineConfig, layout: CacheLayout, name: str, budget: int, *, steps: bool) -> int:
    """The budget, if the blocks fit that have to be in such memory: with `steps`, those of two steps."""
    two = 2 * layout.blocks(config.step_tokens + config.max_running * layout.text_per_block)
    least = max(2, two) if steps else 2
    if budget < least * layout.block_bytes:
        raise InvalidParameter(
            name, f"must hold {least} blocks of {layout.block_bytes} bytes, {least * layout.block_bytes} in "
            f"all, not {budget}; give more, or make step_tokens or max_running smaller"
        )  # fmt: skip
    return budget


def make_tier(layout: CacheLayout, given: Budgets, model: LoadedModel, disk: DiskTier | None) -> Tier:
    """What attention reads from, over a disk if there is one."""
    if given.host is None:
        return lower(layout, given.device, "device", disk)
    below = lower(layout, given.host, "host", disk)
    return WindowTier(layout, given.device, given.landmarks, below, copies_for(model.device))


def lower(layout: CacheLayout, memory: int, name: str, disk: DiskTier | None) -> LowerTier:
    """A tier in host memory."""
    return DeviceTier(layout, memory, name=name) if disk is None else PagedTier(layout, memory, disk, name)
