"""Performer (Choromanski et al. 2021, https://arxiv.org/abs/2009.14794): positive random features of a block's keys.

exp(q · k) is the mean of exp(w·q - |q|²/2)·exp(w·k - |k|²/2) over random directions w, so the sum of the keys'
features estimates the block's mass for every query. Random where the other rules are not: its error falls with the
number of features alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache.landmarks.base import LandmarkRule

FEATURES = 128


class Performer(LandmarkRule):
    """log(φ(q) · mean φ(k)).

    Features are kept as exp(w·k - |k|²/2); the dot product is taken before the logarithm.
    """

    name = "performer"
    estimates_mass = True
    rounds = False

    def widths(self, head_dim: int) -> tuple[int, ...]:
        return (FEATURES,)

    def summarise(self, keys: Tensor) -> Tensor:
        return features(keys.float() / balance(keys)).mean(-2)

    def encode(self, queries: Tensor) -> Tensor:
        return features(queries.float() * balance(queries)) / FEATURES

    def join(self, scores: Tensor) -> Tensor:
        return scores.mean(-1).clamp(min=torch.finfo(scores.dtype).tiny).log()


def balance(vectors: Tensor) -> float:
    """Queries come with the softmax's 1/√D in them; the error is least where both sides carry half of it."""
    return vectors.shape[-1] ** 0.25


def features(vectors: Tensor) -> Tensor:
    """exp(w·x - |x|²/2) for orthogonal random directions w: (…, FEATURES) of (…, D)."""
    dim = vectors.shape[-1]
    generator = torch.Generator().manual_seed(dim)  # the same directions in every process
    drawn = torch.randn(-(-FEATURES // dim), dim, dim, generator=generator)
    norms = torch.randn(len(drawn), dim, dim, generator=generator).norm(dim=-1, keepdim=True)
    directions = (torch.linalg.qr(drawn).Q * norms).flatten(0, 1)[:FEATURES].to(vectors.device)
    exponent = vectors @ directions.mT - vectors.square().sum(-1, keepdim=True) / 2
    return exponent.clamp(max=80.0).exp()
