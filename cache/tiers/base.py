"""The protocol of what attention reads from. A tier knows slots and tensors; it knows neither sessions nor hashes.

Addresses (slots, heads, offsets) are tensors of the CPU, on every device: what lies where is decided there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from cache.layout import Bytes, CacheLayout


@dataclass(frozen=True)
class Places:
    """Where keys and values of blocks lie, to be read in place; of a block that is not full yet also to be written.

    Attributes:
        keys, values: (places, block_size, head_dim)
        at: numbers of places, the shape of what was asked for; on their device
    """

    keys: Tensor
    values: Tensor
    at: Tensor

    def copied(self) -> tuple[Tensor, Tensor]:
        """Keys and values (…, block_size, head_dim) of the places (…)."""
        at = self.at.flatten()
        keys, values = (x.index_select(0, at).unflatten(0, self.at.shape) for x in (self.keys, self.values))
        return keys, values


@dataclass(frozen=True)
class Traffic:
    """Heads of blocks that were brought up.

    Attributes:
        moved: all of them, by (from, to)
        waited: those that were not there when they were located, by the tier that had them
        foreseen: those that were brought up before they were located
        guessed: how many of these were located then
    """

    moved: dict[tuple[str, str], int] = field(default_factory=dict)
    waited: dict[str, int] = field(default_factory=dict)
    foreseen: int = 0
    guessed: int = 0


class Tier(Protocol):
    """Fixed-size storage for blocks, addressed by slot number, of which each head is found by itself."""

    @property
    def name(self) -> str:
        """As metrics call it."""
        ...

    @property
    def layout(self) -> CacheLayout:
        """Shapes of a block."""
        ...

    @property
    def device(self) -> torch.device:
        """Where attention reads."""
        ...

    @property
    def pins(self) -> bool:
        """Whether a block that is not full keeps memory from others."""
        ...

    @property
    def capacity(self) -> int:
        """Blocks that fit."""
        ...

    @property
    def used(self) -> int:
        """Blocks that are stored."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Its budget."""
        ...

    @property
    def used_bytes(self) -> int:
        """Bytes of it that are in use."""
        ...

    @property
    def window(self) -> int:
        """Heads of blocks that can be located at once."""
        ...

    @property
    def most_landmarks(self) -> int:
        """Bytes that indexes may take beside what is read."""
        ...

    @property
    def lasting(self) -> bool:
        """Whether what `locate` tells is good as long as the blocks are there, whoever asks meanwhile."""
        ...

    def allocate(self) -> int:
        """A free slot; raises OutOfBlocks at once, also where room is to come."""
        ...

    def release(self, slot: int) -> None:
        """Give a slot back; its contents are gone."""
        ...

    def sealed(self, slot: int) -> None:
        """A block will not change any more; it may go down."""
        ...

    def write(self, layer: int, slots: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values (tokens, kv_heads, head_dim) at (slots, offsets), both int64 (tokens,)."""
        ...

    def locate(self, layer: int, slots: Tensor, heads: Tensor, *, passing: bool = False) -> Places:
        """Where blocks of a layer lie, brought up if need be; what it tells is good until it is asked again.

        Args:
            slots, heads: int64, broadcast together; at most `window` of them
            passing: they are read once, as a scan does, and should not push out what is read often
        """
        ...

    def pools(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """All keys and all values of a layer (places, block_size, head_dim), a head at slot * kv_heads + head.

        None where heads of blocks come and go, and have to be located.
        """
        ...

    def let_go(self) -> None:
        """What was located last is not read any more; until then it stays, whoever allocates meanwhile."""
        ...

    def traffic(self) -> Traffic:
        """What was brought up since it was last asked."""
        ...

    def yield_bytes(self, count: int) -> None:
        """Leave so many bytes of the budget, up to half of it, to others, who keep landmarks in them."""
        ...

    def units(self, slot: int) -> Bytes:
        """A sealed block as it travels: keys, then values of each head (layers, kv_heads, bytes), copied.

        From any thread, for who has a reference to it; raises DamagedBlock.
        """
        ...

    def fill(self, slot: int, units: Bytes) -> None:
        """Store a whole block, as `units` gave it, in a slot that was just allocated."""
        ...


class LowerTier(Tier, Protocol):
    """A tier in host memory that a window can lie over."""

    def at_hand(self, layer: int, slots: Tensor, heads: Tensor) -> Tensor:
        """Which heads of blocks could be located at once, bool; the others are looked for meanwhile."""
        ...
