"""Landmark Attention (Mohtashami & Jaggi 2023, https://arxiv.org/abs/2305.16300): the key of the block's last token."""

from __future__ import annotations

from torch import Tensor

from cache.landmarks.base import LandmarkRule


class Trained(LandmarkRule):
    """The model was trained to put what stands for a block into its closing landmark token."""

    name = "trained"
    estimates_mass = True

    def widths(self, head_dim: int) -> tuple[int, ...]:
        return (head_dim,)

    def summarise(self, keys: Tensor) -> Tensor:
        return keys[..., -1, :]

    def encode(self, queries: Tensor) -> Tensor:
        return queries

    def log_mass(self, scores: Tensor, block_size: int) -> Tensor:
        return scores  # the grouped softmax gives a block exactly its landmark's weight
