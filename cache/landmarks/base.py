"""The protocol of a landmark rule.

Every rule is an inner product: a block becomes one vector per KV head, a query becomes one vector, and the
block's score is their dot product. So one index serves all rules, and scoring is one matrix product.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class LandmarkRule(Protocol):
    """How a block is summarised and how a query looks at summaries."""

    name: str

    def width(self, head_dim: int) -> int:
        """Channels of a summary."""
        ...

    def summarise(self, keys: Tensor) -> Tensor:
        """keys (…, block_size, head_dim) of sealed blocks -> summaries (…, width)."""
        ...

    def encode(self, queries: Tensor) -> Tensor:
        """queries (…, head_dim) -> vectors (…, width) whose dot product with a summary is its score."""
        ...
