"""BigBird (Zaheer et al. 2020, https://arxiv.org/abs/2007.14062): random blocks beside the window and the sinks."""

from __future__ import annotations

import torch
from torch import Tensor

from cache.landmarks.placed import Placed

WAVES = 32


class Random(Placed):
    """A fixed random number for each pair of the query's block and a block: Σ cos(a·own + b·block + c)."""

    name = "random"

    def widths(self, head_dim: int) -> tuple[int, ...]:
        return (2 * WAVES,)

    def features(self, blocks: Tensor) -> Tensor:
        angles = blocks.double()[..., None] * waves(1).to(blocks.device)
        return torch.cat((angles.cos(), angles.sin()), dim=-1).float()

    def seen(self, own: Tensor) -> Tensor:
        angles = own.double()[..., None] * waves(2).to(own.device) + waves(3).to(own.device)
        return torch.cat((angles.cos(), -angles.sin()), dim=-1).float()


def waves(seed: int) -> Tensor:
    """Random frequencies (WAVES,) between 1 and 100."""
    generator = torch.Generator().manual_seed(seed)
    return 1 + 99 * torch.rand(WAVES, generator=generator, dtype=torch.float64)
