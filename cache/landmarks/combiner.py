"""Combiner (Ren et al. 2021, https://arxiv.org/abs/2107.05768): a block weighs what its mean key says.

The attention of a far block factors into the block's weight, from its pooled key, and the softmax within the block. So
reading every block is not full attention here.
"""

from __future__ import annotations

from cache.landmarks.mean import Mean


class Combiner(Mean):
    """Scores as `mean`; a block that is read gets B·exp(q · mean) of the softmax, shared among its keys."""

    name = "combiner"
    replaces_mass = True
