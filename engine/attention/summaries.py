"""What stands for blocks that are filled, by kernels that read them where they lie; see `summary_kernels`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cache import ROUNDS, BlockStore, CacheLayout, Summary, over_heads
from engine.attention.base import RetrievalSettings
from engine.attention.desk import bits, pool_bits
from engine.rotation import Rotation

WORK = 16
"""Products that a number of a block is worth."""
Floats = NDArray[np.float32]


class Summaries:
    """For settings that it `serves`."""

    def __init__(self, layout: CacheLayout, settings: RetrievalSettings) -> None:
        from engine.attention import summary_kernels

        self._layout, self._settings, self._kernels = layout, settings, summary_kernels
        self._heads = np.arange(layout.kv_heads)[:, None]
        summary_kernels.warm_up(bits(torch.empty(0, dtype=layout.dtype)).dtype)

    @staticmethod
    def serves(settings: RetrievalSettings) -> bool:
        """Whether kernels know what is kept of a block: a trained landmark, or moments with slopes."""
        known = (settings.gated and settings.bounded) or (settings.landmarks == "moments" and settings.judges_by_slopes)
        return known and not settings.copied_blocks and not settings.outlier_blocks

    def of(self, store: BlockStore, layer: int, slots: torch.Tensor, first: int, rotation: Rotation) -> Summary:
        """What stands for a session's blocks first, first + 1, … that lie in slots (N,)."""
        pools, size = store.tier.pools(layer), self._layout.block_size
        if pools is None:
            keys, values = (x.flatten(0, 1) for x in store.read(layer, slots))
            places = np.arange(len(keys)).reshape(len(self._heads), -1)
        else:
            (keys, values), places = pools, slots.numpy() * len(self._heads) + self._heads
        shape = (*places.shape, self._layout.head_dim)
        if self._settings.gated:
            found = np.empty(shape, np.float32)
            self._kernels.last_keys(pool_bits(keys), places, size, found, 0, len(places))
            return Summary(torch.from_numpy(found)[:, :, None])
        landmarks = np.empty((*shape[:2], 2 * shape[2]), np.float32)
        means, along, turning = (np.empty(shape, np.float32) for _ in range(3))
        turns = self._turns(first, places.shape[1], rotation)
        given = (pool_bits(keys), pool_bits(values), places, size, turns, rotation.interleaved, ROUNDS)

        def work(some: slice) -> None:
            self._kernels.moments(*given, landmarks, means, along, turning, some.start, some.stop)

        over_heads(work, len(places), WORK * size * places.shape[1] * shape[2])
        told = [torch.from_numpy(x) for x in (landmarks[:, :, None], means, along, turning)]
        return Summary(told[0], told[1], (told[2], told[3]))

    def _turns(self, first: int, count: int, rotation: Rotation) -> Floats:
        """What turns keys as they are stored to where they stand (N, 2, S)."""
        if self._settings.bounded or rotation.frequencies is None:
            return np.empty((count, 2, 0), np.float32)
        starts = torch.arange(first, first + count) * self._layout.block_size
        made: Floats = torch.stack(rotation.turns(starts, torch.float32), dim=1).numpy()
        return made
