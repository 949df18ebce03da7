"""The tier that attention reads directly: one tensor per layer on the model's device.

On a CPU machine this is host memory. The tensors are as large as the budget but the operating system hands
out their pages only when they are first written, so an idle server holds little.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache.errors import OutOfBlocks
from cache.layout import CacheLayout


class DeviceTier:
    """Slots in memory of one device, keys and values of a (slot, head) side by side."""

    name = "device"

    def __init__(self, layout: CacheLayout, capacity_bytes: int, device: torch.device | str = "cpu") -> None:
        self.layout = layout
        self.capacity = capacity_bytes // layout.block_bytes
        shape = (self.capacity, layout.kv_heads, 2, layout.block_size, layout.head_dim)
        self._pools = [torch.empty(shape, dtype=layout.dtype, device=device) for _ in range(layout.layers)]
        self._heads = torch.arange(layout.kv_heads, device=device)
        self._released: list[int] = []
        self._fresh = 0

    @property
    def used(self) -> int:
        return self._fresh - len(self._released)

    def allocate(self) -> int:
        if self._released:  # memory that was touched before is taken first
            return self._released.pop()
        if self._fresh == self.capacity:
            raise OutOfBlocks(f"all {self.capacity} blocks are in use")
        self._fresh += 1
        return self._fresh - 1

    def release(self, slot: int) -> None:
        self._released.append(slot)

    def write(self, layer: int, slots: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        pool = self._pools[layer]
        pool[slots, :, 0, offsets] = keys.to(pool.dtype)
        pool[slots, :, 1, offsets] = values.to(pool.dtype)

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        blocks = self._pools[layer].index_select(0, slots)  # (blocks, kv_heads, 2, block_size, head_dim)
        return blocks[:, :, 0].transpose(0, 1), blocks[:, :, 1].transpose(0, 1)

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.layout.kv_heads
        rows = slots * heads + self._heads.view(heads, *[1] * (slots.dim() - 1))
        flat = self._pools[layer].flatten(0, 1)  # (slots * kv_heads, 2, block_size, head_dim)
        found = flat.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        return found.select(-3, 0), found.select(-3, 1)
