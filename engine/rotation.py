"""Rotary positions, from a layer's own frequencies.

Angles are taken in float64: at position 1,000,000 float32 would be off by a twentieth of a turn.
Source: RoFormer (Su et al. 2021, https://arxiv.org/abs/2104.09864), which turns neighbouring channels (`interleaved`);
Llama's convention turns channel i with channel i + rotary_dim / 2.
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
        interleaved: channels 2i and 2i + 1 are turned together, not i and i + rotary_dim / 2
    """

    frequencies: Tensor | None
    interleaved: bool = False

    @property
    def channels(self) -> int:
        """How many it turns."""
        return 0 if self.frequencies is None else 2 * len(self.frequencies)

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate x (…, dim) by positions, whose shape broadcasts against x.shape[:-1]."""
        if self.frequencies is None:
            return x
        angles = positions[..., None].double() * self.frequencies  # (…, rotary_dim / 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        turned, rest = x[..., : self.channels], x[..., self.channels :]
        first, second = self._pairs(turned)
        rotated = self._join(first * cos - second * sin, second * cos + first * sin)
        if not rest.shape[-1]:
            return rotated
        return torch.cat((rotated, rest.expand(*rotated.shape[:-1], -1)), dim=-1)

    def _pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two channels of each pair, from x (…, rotary_dim): (…, rotary_dim / 2) each."""
        if self.interleaved:
            return x[..., 0::2], x[..., 1::2]
        half = x.shape[-1] // 2
        return x[..., :half], x[..., half:]

    def _join(self, first: Tensor, second: Tensor) -> Tensor:
        """The inverse of `_pairs`."""
        if self.interleaved:
            return torch.stack((first, second), dim=-1).flatten(-2)
        return torch.cat((first, second), dim=-1)
