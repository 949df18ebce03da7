"""Memory that ends where a test wants it to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cache.pages import Slab


class Scarce(Slab):
    """Has so many pieces, and then no memory."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.left = pieces

    def take(self, count: int) -> NDArray[np.uint8]:
        if not self.left:
            raise MemoryError
        self.left -= 1
        return super().take(count)
