"""What the landmarks of an index say to queries, and which blocks sections stand for. Plain torch.

Letters in shapes: H KV heads, T queries, G query heads per KV head, N far blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache import SECTION, BlockIndex
from engine.attention.base import RetrievalSettings
from engine.attention.rows import Rows


def judged(settings: RetrievalSettings, index: BlockIndex, rows: Rows, far_blocks: int) -> tuple[Tensor, Tensor]:
    """How promising each far block is, and what it weighs if the rule can tell: (H, T, G, N) each."""
    rule = settings.rule
    looking = rule.look(rows.far_queries, rows.own)  # (H, T, G, W)
    products = index.products(looking.flatten(1, 2), far_blocks)  # (H, T * G, N * M, P)
    if settings.judges_by_slopes:
        along = index.along(rows.far_queries.flatten(1, 2), far_blocks)
        products = torch.cat((products, along[..., None]), dim=-1)
    score, gauge = rule.judge(products, rows.block_size // index.shape.landmarks)
    shape = (*rows.queries.shape[:3], far_blocks, index.shape.landmarks)
    joined = rule.join(score.view(shape))
    return joined, joined if gauge is score else rule.join(gauge.view(shape))


def by_weight(
    settings: RetrievalSettings, ends: Tensor, scores: Tensor, gauges: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Scores that are what blocks weigh for queries with many of them, and the blocks that sections stand for there.

    One number for each block then tells both whether it is read and what it weighs if it is not.

    Args:
        ends: for each query the first block that it may not choose any more (T,)
        scores, gauges: (H, T, G, N)

    Returns:
        Scores (H, T, G, N); the blocks of whole sections between the sinks and the end, bool (T, N), None for none
    """
    most, far_blocks = settings.own_values, scores.shape[3]
    if most is None or far_blocks <= most:
        return scores, None
    many, sections = ends > most, torch.arange(far_blocks, device=ends.device) // SECTION
    whole = (SECTION * sections >= settings.sink_blocks) & (sections < (ends // SECTION)[:, None])
    return torch.where(many[:, None, None], gauges, scores), whole & many[:, None]
