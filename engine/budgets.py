"""How much memory keys and values get, on the device and in host memory, and the tiers that are made of it."""

from __future__ import annotations

from dataclasses import dataclass

from cache import CacheLayout, DeviceTier, DiskTier, LowerTier, PagedTier, Tier, WindowTier, copies_for
from engine.attention import RetrievalSettings
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


def budgets(config: EngineConfig, model: LoadedModel, index_bytes: int) -> Budgets:
    """What the operator gives, or what is free; raises InvalidParameter if too few blocks fit.

    Args:
        index_bytes: what the indexes take for a block
    """
    layout, on_disk = config.layout(model), config.disk_kv_path is not None
    least = least_blocks(config, layout, config.retrieval(model))
    both = config.kv_bytes is not None and config.host_kv_bytes is not None
    if model.device.type == "cpu" and not both:
        given = config.kv_bytes or config.host_kv_bytes or free_memory() // 2
        return Budgets(enough(layout, "kv_bytes", given, 2 * least if on_disk else 2))  # landmarks may take half
    device = config.kv_bytes or free_memory(model.device) * 3 // 4
    host = enough(layout, "host_kv_bytes", config.host_kv_bytes or free_memory() // 2, least if on_disk else 2)
    landmarks = device // 2
    if not on_disk:  # nothing can be dropped to make room for them
        if index_bytes:
            host = min(host, landmarks // (ROUNDING * index_bytes) * layout.block_bytes)
        landmarks = min(landmarks, ROUNDING * index_bytes * (host // layout.block_bytes))
    enough(layout, "kv_bytes", device - landmarks, least)
    return Budgets(device, host, landmarks)


def least_blocks(config: EngineConfig, layout: CacheLayout, reading: RetrievalSettings) -> int:
    """Blocks that memory must hold where the others lie below it: what cannot leave it, and what a query reads.

    What cannot leave are blocks that are not full. Each of `max_running` sequences has one. A step adds `step_tokens`
    text tokens to some of them: the first that a sequence gets besides one may begin a second block, and after these
    every block of further tokens one more. A session that is taken in from a file meanwhile has one, too. Full blocks
    that are not written yet stay as well, but whoever needs room waits for them.

    What is read is brought up for one layer at a time, for one query if there is no room for more: recent blocks and
    its own, sinks, fetched and outlying ones. Whatever is more (windows, a request that fetches more, or everything)
    is read in pieces of what is left.
    """
    running = config.max_running
    further = max(config.step_tokens, running) - running  # beside one for each
    open_blocks = running + min(running, further) + max(0, further - running) // layout.text_per_block
    read = reading.recent_blocks + 1 + reading.sink_blocks + reading.blocks_per_head + reading.outlier_blocks
    return open_blocks + 1 + -(-read // layout.layers)


def enough(layout: CacheLayout, name: str, budget: int, least: int) -> int:
    """The budget, if so many blocks fit; raises InvalidParameter."""
    if budget < least * layout.block_bytes:
        raise InvalidParameter(
            name, f"must hold {least} blocks of {layout.block_bytes} bytes, {least * layout.block_bytes} in "
            f"all, not {budget}; give more, or make step_tokens, max_running or blocks_per_head smaller"
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
