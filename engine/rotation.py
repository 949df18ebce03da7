"""Rotary positions, from a layer's own frequencies.

Angles are taken in float64: at position 1,000,000 float32 would be off by a twentieth of a turn.
Source: RoFormer (Su et al. 2021, https://arxiv.org/abs/2104.09864), which turns neighbouring channels (`interleaved`);
Llama's convention turns channel i with channel i + rotary_dim / 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PAGE = 32
"""Positions whose turns are worked out together: for more cosines than 2,048 torch calls up threads, which wait for
each other where another process has a core."""
MOST_PAGES = 512
"""Pages that are kept, 32 KB each where 128 channels turn: who decodes has one of his own."""


@dataclass(frozen=True)
class Page:
    """What channels and their partners are multiplied with at positions that follow each other.

    Attributes:
        turns: (positions, 2, rotary_dim) fp32
        address: of its first number
    """

    turns: NDArray[np.float32]
    address: int


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
    _pages: dict[int, Page] = field(default_factory=dict, compare=False, repr=False)
    _firsts: dict[int, Page] = field(default_factory=dict, compare=False, repr=False)

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
        cos, sin = self._turns(positions, self.frequencies, dtype)
        self._last[:] = [(positions.clone(), cos, sin), *self._last[:1]]  # of two passes at once one may lose its entry
        return cos, sin

    def _turns(self, positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = positions[..., None].double() * frequencies
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return self._paired(cos, cos), self._paired(-sin, sin)

    def page(self, number: int) -> Page:
        """`turns` of positions PAGE * number, …, on a CPU: who decodes comes to all of them, one after the other."""
        page = self._pages.pop(number, None) or self._made(PAGE * number, PAGE)
        self._pages[number] = page  # behind those that nobody asked for since
        for old in list(self._pages)[:-MOST_PAGES] if len(self._pages) > MOST_PAGES else ():
            self._pages.pop(old, None)
        return page

    def first(self, count: int) -> Page:
        """`turns` of positions 0, …, count - 1, on a CPU; few counts are ever asked for."""
        if count not in self._firsts:
            self._firsts[count] = self._made(0, count)
        return self._firsts[count]

    def _made(self, start: int, count: int) -> Page:
        """`turns` of so many positions from one on, on a CPU."""
        if self.frequencies is None:
            nothing = np.empty((count, 2, 0), np.float32)
            return Page(nothing, nothing.ctypes.data)
        turns = torch.stack(self._turns(torch.arange(start, start + count), self.frequencies, torch.float32), dim=1)
        made = turns.numpy()
        return Page(made, made.ctypes.data)

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
