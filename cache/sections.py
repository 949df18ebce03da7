"""Sections of neighbouring blocks: one mean value, and one slope of it, for all that is not read of them.

What is estimated of a block that is not read is little beside what is read, and of thousands of blocks it costs most of
looking through an index. A section's keys and values are those of its blocks, so what its mean value is, and how that
turns with a query (`cache.slopes`), follows from what is kept of these, and is the same after a restart and in a fork.

Letters in shapes: H KV heads, N sections, S blocks of a section, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache.slopes import main_direction

SECTION = 4
"""Blocks of a section: sections of 16 make the divergence from full attention a sixth larger, of 4 a twentieth."""
NUDGE = 1e-4
"""Means of four numbers of 4 bits often lie between two such numbers: the last bit must not decide between these."""


def gathered_slopes(
    means: Tensor, variances: Tensor, values: Tensor, slopes: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The slopes of sections, two vectors (H, N, D) as those of blocks.

    Args:
        means, variances: of the blocks' keys, variances without what their slopes tell
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


def gathered_profile(variances: Tensor) -> Tensor:
    """How variances of blocks (H, N, S, D), each divided by its largest channel, spread over channels: (H, N, D)."""
    largest = variances.amax(-1, keepdim=True).clamp(min=torch.finfo(variances.dtype).tiny)
    return (variances / largest).mean(2) + NUDGE
