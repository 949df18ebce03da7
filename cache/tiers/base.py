"""The protocol of a storage tier. A tier knows slots and tensors; it does not know sessions or reference counts."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from cache.layout import CacheLayout


class Tier(Protocol):
    """Fixed-size storage for blocks, addressed by slot number."""

    @property
    def name(self) -> str:
        """As metrics call it."""
        ...

    @property
    def layout(self) -> CacheLayout:
        """Shapes of a block."""
        ...

    @property
    def capacity(self) -> int:
        """Blocks that fit."""
        ...

    @property
    def used(self) -> int:
        """Blocks that are stored."""
        ...

    def allocate(self) -> int:
        """A free slot; raises OutOfBlocks."""
        ...

    def release(self, slot: int) -> None:
        """Give a slot back; its contents are gone."""
        ...

    def write(self, layer: int, slots: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values (tokens, kv_heads, head_dim) at (slots, offsets), both int64 (tokens,)."""
        ...

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Whole blocks: slots (blocks,) -> keys, values, each (kv_heads, blocks, block_size, head_dim)."""
        ...

    def pools(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer in place, each (slots, kv_heads, block_size, head_dim); not to be written."""
        ...

    def head_keys(self, layer: int, slots: Tensor, head: int) -> Tensor:
        """Keys of one head: slots (blocks,) -> (blocks, block_size, head_dim)."""
        ...

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Per head: slots (kv_heads, …) -> keys, values, each (kv_heads, …, block_size, head_dim)."""
        ...
