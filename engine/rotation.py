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
        return self.turned(x, self.turns(positions, x.dtype))

    def turned(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate x (…, dim) by what `turns` gave for its positions."""
        if self.frequencies is None:
            return x
        cos, sin = turns
        if self.channels == x.shape[-1]:
            return torch.addcmul(x * cos, self._partners(x), sin)
        part, rest = x[..., : self.channels], x[..., self.channels :]
        rotated = torch.addcmul(part * cos, self._partners(part), sin)
        return torch.cat((rotated, rest.expand(*rotated.shape[:-1], -1)), dim=-1)

    def turns(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What each channel and its partner are multiplied with at positions: (*positions.shape, rotary_dim) each.

        Those of the last two calls are kept: the layers of a step ask for the same ones, one after the other.
        """
        if self.frequencies is None:
            nothing = torch.empty((*positions.shape, 0), dtype=dtype)
            return nothing, nothing
        for known, cos, sin in self._last:
            same = known.shape == positions.shape and known.device == positions.device and cos.dtype == dtype
            if same and torch.equal(known, positions):
                return cos, sin
        angles = positions[..., None].double() * self.frequencies
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        cos, sin = self._paired(cos, cos), self._paired(-sin, sin)
        self._last[:] = [(positions.clone(), cos, sin), *self._last[:1]]  # of two passes at once one may lose its entry
        return cos, sin

    def _partners(self, x: Tensor) -> Tensor:
        """Of each channel of x (…, rotary_dim) the one that is turned with it."""
        if self.interleaved:
            return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return x.roll(self.channels // 2, -1)

    def _paired(self, first: Tensor, second: Tensor) -> Tensor:
        """Numbers of the first and of the second channel of each pair (…, rotary_dim / 2), where they belong."""
        if self.interleaved:
            return torch.stack((first, second), dim=-1).flatten(-2)
        return torch.cat((first, second), dim=-1)
