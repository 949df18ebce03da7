"""Rotary positions, from a layer's own frequencies.

Angles are taken in float64: at position 1,000,000 float32 would be off by a twentieth of a turn.
Source: RoFormer (Su et al. 2021, https://arxiv.org/abs/2104.09864), which turns neighbouring channels (`interleaved`);
Llama's convention turns channel i with channel i + rotary_dim / 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    _last: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list, compare=False, repr=False)

    @property
    def channels(self) -> int:
        """How many it turns."""
        return 0 if self.frequencies is None else 2 * len(self.frequencies)

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate x (…, dim) by positions, whose shape broadcasts against x.shape[:-1]."""
        if self.frequencies is None:
            return x
        cos, sin = self.turns(positions, x.dtype)
        turned, rest = x[..., : self.channels], x[..., self.channels :]
        first, second = self._pairs(turned)
        rotated = self._join(first * cos - second * sin, second * cos + first * sin)
        if not rest.shape[-1]:
            return rotated
        return torch.cat((rotated, rest.expand(*rotated.shape[:-1], -1)), dim=-1)

    def turns(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine of positions in each pair of channels (*positions.shape, rotary_dim / 2).

        Those of the last two calls are kept: the layers of a step ask for the same ones, one after the other.
        """
        assert self.frequencies is not None, "a layer without positions"
        for known, cos, sin in self._last:
            same = known.shape == positions.shape and known.device == positions.device and cos.dtype == dtype
            if same and torch.equal(known, positions):
                return cos, sin
        angles = positions[..., None].double() * self.frequencies
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        self._last[:] = [(positions.clone(), cos, sin), *self._last[:1]]  # of two passes at once one may lose its entry
        return cos, sin

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
