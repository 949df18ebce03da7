"""Queries that grow with their position, so that attention over longer texts stays as sharp. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Temperature:
    """A factor of each query, 1 + beta · log(1 + ⌊position / length⌋): that of Llama 4 and Ministral 3.

    Attributes:
        beta: how fast it grows
        length: positions of the first stretch, in which it is 1
    """

    beta: float
    length: int

    def __call__(self, positions: Tensor) -> Tensor:
        """The factors at positions, of any shape: fp32."""
        return 1 + self.beta * (positions // self.length).float().log1p()
