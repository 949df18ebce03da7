"""Pairs of neighbouring blocks, and sections of pairs: what stands for many blocks that are not read.

Of thousands of blocks a query looks at pairs first: a pair has a landmark as a block has one. Only the best pairs are
opened: their two blocks are told apart, and of them come the blocks that are read. What is estimated of all others is
little beside what is read, and costs most of looking: one mean value and one slope of it stand for a section. The keys
and values of a pair and of a section are those of their blocks, so what stands for them follows from what is kept of
these and from what is usual (`cache.usual`), and is the same after a restart and in a fork.

Letters in shapes: H KV heads, N groups of S members, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cache.slopes import main_direction

PAIR = 2
"""Blocks of a pair: of fours a quarter must be opened, which costs more than what they save."""
PAIRS = 4
"""Pairs of a section."""
SECTION = PAIR * PAIRS
"""Blocks of a section: with sections of 16 the divergence from full attention is a sixth larger, of 8 a tenth."""
OPENED = 6
"""Pairs that are opened for each block that is to be chosen."""
LEAST_OPENED = 16
"""So many pairs are opened, however few blocks are to be chosen."""


def pairs_opened(chosen: int) -> int:
    """How many pairs are opened where so many blocks are to be chosen."""
    return max(LEAST_OPENED, OPENED * chosen)


@dataclass(frozen=True)
class Gathered:
    """What keys and values of blocks are like, or of what is put together from them; (H, N, D) each.

    Attributes:
        means: of keys
        variances: of keys, channel by channel, without what the slope tells
        values: mean values
        along, turning: both vectors of their slope (`cache.slopes`)
    """

    means: Tensor
    variances: Tensor
    values: Tensor
    along: Tensor
    turning: Tensor

    def together(self, count: int) -> Gathered:
        """Of each `count` neighbours together."""
        each = (self.means, self.variances, self.values, self.along, self.turning)
        means, variances, values, along, turning = (x.unflatten(1, (-1, count)) for x in each)
        slope, turn = gathered_slopes(means, variances, values, (along, turning))
        apart = means - means.mean(2, keepdim=True)
        whole = (apart.square() + along.square() + variances).mean(2)
        left = (whole - slope.square()).clamp(min=0)
        return Gathered(means.mean(2), left, values.mean(2), slope, turn)


def gathered_slopes(
    means: Tensor, variances: Tensor, values: Tensor, slopes: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The slopes of groups, two vectors (H, N, D) as those of their members.

    Args:
        means, variances: of the members' keys, variances without what their slopes tell
        values: their mean values
        slopes: theirs; (H, N, S, D) each
    """
    along_keys, along_values = slopes
    apart = means - means.mean(2, keepdim=True)
    direction = main_direction(torch.cat((apart, along_keys), 2))  # (H, N, 1, D)
    between, within = ((x * direction).sum(-1, keepdim=True) for x in (apart, along_keys))  # (H, N, S, 1)
    left = variances * direction  # what no slope tells, channel by channel
    spread = (between.square() + within.square() + (left * direction).sum(-1, keepdim=True)).mean(2).sqrt()
    spread = spread.clamp(min=torch.finfo(means.dtype).tiny)  # (H, N, 1)
    keys = (apart * between + along_keys * within + left).mean(2) / spread
    apart = values - values.mean(2, keepdim=True)
    return keys, (apart * between + along_values * within).mean(2) / spread
