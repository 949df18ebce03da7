"""What is usual of a session: its first blocks tell it, and what comes later changes nothing.

How variances are spread over channels is much the same for all of a head's blocks. And keys lie in few directions
(Loki, https://arxiv.org/abs/2406.02542): products with what they are in the half of the directions in which they are
largest tell as well what a pair of blocks weighs, for half of the bytes.

Letters in shapes: H KV heads, N vectors, D channels, W directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cache.sections import PAIR, SECTION, Gathered

BEGINNING = 8 * SECTION
"""Blocks of a session, its first ones, that tell what is usual. Before they are there no pair is looked at."""
STEP = 16
"""Directions are a multiple of these where there are as many, for kernels take so many numbers at once."""


def narrow(channels: int) -> int:
    """In how many directions pairs of blocks are kept: half as many as channels."""
    return min(channels, -(-channels // (2 * STEP)) * STEP)


@dataclass(frozen=True)
class Usual:
    """See the module.

    Attributes:
        profile: of variances, the mean over pairs, each divided by its largest channel (H, D)
        directions: which keys are largest in, at right angles and of length one (H, D, W)
    """

    profile: Tensor
    directions: Tensor

    @property
    def nbytes(self) -> int:
        return self.profile.nbytes + self.directions.nbytes

    def narrowed(self, vectors: Tensor) -> Tensor:
        """What vectors (H, N, D) are in the directions: (H, N, W)."""
        return vectors @ self.directions


def usual(blocks: Gathered) -> Usual:
    """What `BEGINNING` blocks tell."""
    variances = blocks.together(PAIR).variances
    largest = variances.amax(-1, keepdim=True).clamp(min=torch.finfo(variances.dtype).tiny)
    return Usual((variances / largest).mean(1), directions(blocks, narrow(variances.shape[-1])))


def directions(blocks: Gathered, count: int) -> Tensor:
    """The directions in which keys have the largest squares, mixed so that they are alike in all: (H, D, count)."""
    vectors = torch.cat((blocks.means, blocks.along), 1).double()
    squares = vectors.mT @ vectors / blocks.means.shape[1] + blocks.variances.double().mean(1).diag_embed()
    return mixed(torch.linalg.eigh(squares).eigenvectors[..., -count:]).float().contiguous()


def mixed(vectors: Tensor) -> Tensor:
    """Other vectors (H, D, W) at right angles for the same subspace, each with a part of the large and of the small.

    Numbers of 4 bits have one scale for all of a row, so none should be much larger than others
    (QuaRot, https://arxiv.org/abs/2404.00456).
    """
    turn = torch.ones(1, 1, dtype=vectors.dtype, device=vectors.device)
    while vectors.shape[-1] % (2 * len(turn)) == 0:  # Hadamard's matrix, as large as fits
        turn = torch.cat((torch.cat((turn, turn), 1), torch.cat((turn, -turn), 1)))
    apart = vectors.unflatten(-1, (len(turn), -1))  # of each row large and small
    return (turn @ apart / len(turn) ** 0.5).flatten(-2)
