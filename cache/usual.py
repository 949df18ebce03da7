"""What is usual of a session: its first blocks tell it, and what comes later changes nothing.

How variances are spread over channels is much the same for all of a head's blocks. And keys lie in few directions
(Loki, https://arxiv.org/abs/2406.02542), and so do mean values: what stands for many blocks is kept in the half of the
directions in which keys, or values, are largest. What is estimated by them is as good, for half of the bytes.

Letters in shapes: H KV heads, N vectors, D channels, W directions.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.sections import PAIR, SECTION, Gathered
from cache.vectors import Meter

BEGINNING = 8 * SECTION
"""Blocks of a session, its first ones, that tell what is usual. Before they are there no pair is looked at."""
STEP = 16
"""Directions are a multiple of these where there are as many, for kernels take so many numbers at once."""


def narrow(channels: int) -> int:
    """In how many directions pairs and sections of blocks are kept: half as many as channels."""
    return min(channels, -(-channels // (2 * STEP)) * STEP)


@dataclass(frozen=True)
class Usual:
    """See the module.

    Attributes:
        profile: of variances, the mean over pairs, each divided by its largest channel (H, D)
        keys: directions in which keys are largest, at right angles and of length one (H, D, W)
        values: those in which mean values, and what slopes add to them, are (H, W, D)
    """

    profile: Tensor
    keys: Tensor
    values: Tensor

    @property
    def nbytes(self) -> int:
        return self.profile.nbytes + self.keys.nbytes + self.values.nbytes

    @staticmethod
    def head_bytes(channels: int) -> int:
        """Bytes of each head."""
        return 4 * channels * (1 + 2 * narrow(channels))

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Where they lie, on a CPU."""
        return self.profile.data_ptr(), self.keys.data_ptr(), self.values.data_ptr()

    def of_keys(self, vectors: Tensor) -> Tensor:
        """What keys or queries (H, N, D) are in their directions: (H, N, W)."""
        return vectors @ self.keys

    def of_values(self, vectors: Tensor) -> Tensor:
        """What values (H, N, D) are in theirs: (H, N, W)."""
        return vectors @ self.values.mT

    def widened(self, vectors: Tensor) -> Tensor:
        """Values (H, N, D) that are (H, N, W) in their directions."""
        return vectors @ self.values


class Told:
    """What is usual of a session and of all that have its beginning, once one of them has told it.

    That may be on any thread; it is told once, for kernels of the others know where it lies.
    """

    def __init__(self) -> None:
        self.usual: Usual | None = None
        self._lock = threading.Lock()

    def once(self, tell: Callable[[], Usual], meter: Meter) -> Usual:
        """What is usual, told now if nobody has; its memory is counted."""
        with self._lock:
            if self.usual is None:
                self.usual = tell()
                meter.watch(self.usual)(self.usual.nbytes)
            return self.usual


def usual(blocks: Gathered) -> Usual:
    """What `BEGINNING` blocks tell."""
    variances = blocks.together(PAIR).variances
    largest = variances.amax(-1, keepdim=True).clamp(min=torch.finfo(variances.dtype).tiny)
    keys = directions(torch.cat((blocks.means, blocks.along), 1), blocks.variances.double().sum(1))
    values = directions(torch.cat((blocks.values, blocks.turning), 1))
    return Usual((variances / largest).mean(1).contiguous(), keys.contiguous(), values.mT.contiguous())


def directions(vectors: Tensor, further: Tensor | None = None) -> Tensor:
    """Those in which vectors (H, N, D) have the largest squares, mixed so that they are alike in all: (H, D, W).

    Args:
        further: sums of squares of what else belongs to them, channel by channel (H, D), in fp64
    """
    wide = vectors.double()
    squares = wide.mT @ wide
    if further is not None:
        squares = squares + further.diag_embed()
    squares = squares.nan_to_num(0.0, 0.0, 0.0).cpu()  # what overflows must not raise; a GPU would have to wait
    with one_thread():
        largest = torch.linalg.eigh(squares).eigenvectors[..., -narrow(vectors.shape[-1]) :]
    return mixed(largest).float().to(vectors.device)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one CPU thread: LAPACK's last bits depend on how many there are, and more gain nothing here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def mixed(vectors: Tensor) -> Tensor:
    """Other vectors (H, D, W) at right angles for the same subspace, each with a part of the large and of the small.

    Numbers of 4 bits have one scale for all of a row, so none should be much larger than others
    (QuaRot, https://arxiv.org/abs/2404.00456).
    """
    turn = torch.ones(1, 1, dtype=vectors.dtype, device=vectors.device)
    while vectors.shape[-1] % (2 * len(turn)) == 0:  # Hadamard's matrix, as large as fits
        turn = torch.cat((torch.cat((turn, turn), 1), torch.cat((turn, -turn), 1)))
    apart = vectors.unflatten(-1, (len(turn), -1))  # of each row large and small
    return (apart.mT @ turn / len(turn) ** 0.5).mT.flatten(-2)  # one product, not one for each row
