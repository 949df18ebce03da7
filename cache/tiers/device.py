"""The tier that attention reads directly: one tensor per layer in the memory of one device.

On a CPU machine this is host memory. The tensors are as large as the budget but the operating system hands
out their pages only when they are first written, so an idle server holds little. A thread has the pages of the next
blocks ready, for no step may wait for them.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from cache.errors import OutOfBlocks
from cache.layout import Bytes, CacheLayout
from cache.pages import Ahead, zeros
from cache.tiers.base import Places, Traffic


class DeviceTier:
    """Slots in memory of one device; a (slot, head) holds its keys, or its values, in one piece.

    Args:
        name: `host` where attention reads another tier above this one
    """

    window = sys.maxsize
    pins = False
    lasting = True

    def __init__(
        self,
        layout: CacheLayout,
        capacity_bytes: int,
        device: torch.device | str = "cpu",
        name: str = "device",
    ) -> None:
        self.name = name
        self.layout = layout
        self.device = torch.device(device)
        self.memory_bytes = capacity_bytes
        self.capacity = capacity_bytes // layout.block_bytes
        shape = (self.capacity, layout.kv_heads, layout.block_size, layout.head_dim)
        self._keys = [pool(shape, layout.dtype, self.device) for _ in range(layout.layers)]
        self._values = [pool(shape, layout.dtype, self.device) for _ in range(layout.layers)]
        self._pools = [
            (keys.flatten(0, 1), values.flatten(0, 1)) for keys, values in zip(self._keys, self._values, strict=True)
        ]
        self._ahead = Ahead([*self._keys, *self._values]) if self.device.type == "cpu" else None
        self._slot_bytes = layout.block_bytes // (2 * layout.layers)  # in each of them
        self._released: list[int] = []
        self._fresh = 0

    @property
    def used(self) -> int:
        return self._fresh - len(self._released)

    @property
    def used_bytes(self) -> int:
        return self.used * self.layout.block_bytes

    @property
    def most_landmarks(self) -> int:
        return self.memory_bytes // 2

    def allocate(self) -> int:
        if self._released:  # memory that was touched before is taken first
            return self._released.pop()
        if self._fresh == self.capacity:
            raise OutOfBlocks(f"all {self.capacity} blocks are in use")
        self._fresh += 1
        if self._ahead is not None:
            self._ahead.used(self._fresh * self._slot_bytes)
        return self._fresh - 1

    def release(self, slot: int) -> None:
        self._released.append(slot)

    def sealed(self, slot: int) -> None:
        """It lies where it stays."""

    def write(self, layer: int, slots: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        slots, offsets = slots.to(self.device), offsets.to(self.device)
        self._keys[layer][slots, :, offsets] = keys.to(self.layout.dtype)
        self._values[layer][slots, :, offsets] = values.to(self.layout.dtype)

    def locate(self, layer: int, slots: Tensor, heads: Tensor, *, passing: bool = False) -> Places:
        return Places(*self._pools[layer], (slots * self.layout.kv_heads + heads).to(self.device))

    def pools(self, layer: int) -> tuple[Tensor, Tensor] | None:
        return self._pools[layer]

    def let_go(self) -> None:
        """All blocks stay anyway."""

    def at_hand(self, layer: int, slots: Tensor, heads: Tensor) -> Tensor:
        return torch.ones(torch.broadcast_shapes(slots.shape, heads.shape), dtype=torch.bool)

    def traffic(self) -> Traffic:
        return Traffic()

    def units(self, slot: int) -> Bytes:
        heads = [torch.stack((k[slot], v[slot]), dim=1) for k, v in zip(self._keys, self._values, strict=True)]
        return torch.stack(heads).flatten(2).contiguous().cpu().view(torch.uint8).numpy()

    def yield_bytes(self, count: int) -> None:
        """Landmarks are not counted: there would be nowhere for blocks to go."""

    def fill(self, slot: int, units: Bytes) -> None:
        layout = self.layout
        whole = torch.from_numpy(units).contiguous().view(layout.dtype).to(self.device)
        halves = whole.view(layout.layers, layout.kv_heads, 2, layout.block_size, layout.head_dim)
        for layer, half in enumerate(halves):
            self._keys[layer][slot], self._values[layer][slot] = half[:, 0], half[:, 1]


def pool(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, of which a CPU takes only what is written.

    They must be zeros: attention gives weight 0 to what is not written yet, and 0 times a stray NaN is NaN.
    """
    return zeros(shape, dtype) if device.type == "cpu" else torch.zeros(shape, dtype=dtype, device=device)
