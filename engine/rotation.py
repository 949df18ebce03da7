"""Rotary positions, from a layer's own frequencies.

Angles are taken in float64: at position 1,000,000 float32 would be off by a twentieth of a turn.
Source: RoFormer (Su et al. 2021, https://arxiv.org/abs/2104.09864), halves convention of Llama.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """Rotation by position, of the first `2 * len(frequencies)` channels.

    Attributes:
        frequencies: (rotary_dim / 2,) float64; None for a layer without positions
    """

    frequencies: Tensor | None

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate x (…, dim) by positions, whose shape broadcasts against x.shape[:-1]."""
        if self.frequencies is None:
            return x
        angles = positions[..., None].double() * self.frequencies  # (…, rotary_dim / 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        half = self.frequencies.shape[0]
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        if not rest.shape[-1]:
            return rotated
        return torch.cat((rotated, rest.expand(*rotated.shape[:-1], -1)), dim=-1)
