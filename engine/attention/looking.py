"""What the landmarks of an index say to queries, and which blocks sections stand for. Plain torch.

Letters in shapes: H KV heads, T queries, G query heads per KV head, N far blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache import FIRST, LANES, SECTION, BlockIndex
from engine.attention.base import RetrievalSettings
from engine.attention.rows import Rows


def judged(
    settings: RetrievalSettings, index: BlockIndex, rows: Rows, ends: Tensor, far_blocks: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """How promising each far block is, what it weighs if the rule can tell, and which ones sections stand for.

    For queries with many blocks both are the same: one number for each then tells whether it is read and what it weighs
    if it is not.

    Args:
        ends: for each query the first block that it may not choose any more (T,)

    Returns:
        Scores and weights (H, T, G, N) each; the blocks of whole sections between the sinks and the end, bool (T, N),
        None for none
    """
    rule, size = settings.rule, rows.block_size // index.shape.landmarks
    looking = rule.look(rows.far_queries, rows.own)  # (H, T, G, W)
    products = index.products(looking.flatten(1, 2), far_blocks)  # (H, T * G, N * M, P)
    if settings.judges_by_slopes:
        along = index.along(rows.far_queries.flatten(1, 2), far_blocks)
        products = torch.cat((products, along[..., None]), dim=-1)
    score, gauge = rule.judge(products, size)
    shape = (*rows.queries.shape[:3], far_blocks, index.shape.landmarks)
    scores = rule.join(score.view(shape))
    gauges = scores if gauge is score else rule.join(gauge.view(shape))
    if settings.few_blocks is None or far_blocks <= settings.few_blocks:
        return scores, gauges, None
    many = ends > settings.few_blocks
    weights = rule.judge(by_sections(settings, index, rows, ends, products), size)[1].view(gauges.shape)
    scores, gauges = (torch.where(many[:, None, None], weights, each) for each in (scores, gauges))
    return scores, gauges, pooled(settings, ends, far_blocks) & many[:, None]


def by_sections(settings: RetrievalSettings, index: BlockIndex, rows: Rows, ends: Tensor, products: Tensor) -> Tensor:
    """Products (H, T * G, N, P) where a block's section says what only the block knows.

    Behind its last whole section a query sees that one: what comes later must not change anything.
    """
    assert index.sections is not None
    far_blocks, rule = products.shape[2], settings.rule
    looking = rule.look_at_sections(rows.far_queries).flatten(1, 2)
    told = index.sections.products(looking, far_blocks // SECTION)  # (H, T * G, sections, P of a section)
    last = (ends // SECTION - 1).clamp(min=0).repeat_interleave(rows.queries.shape[2])  # (T * G,)
    mine = torch.minimum(torch.arange(far_blocks, device=ends.device) // SECTION, last[:, None])  # (T * G, N)
    told = told.gather(2, mine[None, :, :, None].expand(len(told), -1, -1, told.shape[3]))
    return rule.by_sections(products, told, index.largest(far_blocks))


def pooled(settings: RetrievalSettings, ends: Tensor, far_blocks: int) -> Tensor:
    """The blocks of whole sections between the sinks and the end of each query: bool (T, N)."""
    sections = torch.arange(far_blocks, device=ends.device) // SECTION
    return (SECTION * sections >= settings.sink_blocks) & (sections < (ends // SECTION)[:, None])


def looked_at_closely(
    settings: RetrievalSettings, index: BlockIndex, rows: Rows, ends: Tensor, hidden: Tensor, taken: int
) -> Tensor | None:
    """Which blocks a query may choose after a glance at all of them: bool (H, T, N), None for all.

    Those of each tile of 16 of which one may well be as good as the `taken` likeliest, and the first ones.

    Args:
        ends: for each query the first block that it may not choose any more (T,)
        hidden: bool (T, N), blocks that a query may not choose
    """
    beyond, glanced = settings.glances_beyond(rows.queries.shape[2]), hidden[:, FIRST:]
    if beyond is None or hidden.shape[1] <= max(beyond, FIRST + taken):
        return None
    looking = settings.rule.look(rows.far_queries, rows.own)[:, :, 0]  # (H, T, W)
    likely, doubt = index.glances(looking, hidden.shape[1])  # (H, T, N - FIRST) each
    likely = likely.masked_fill(glanced, -torch.inf)
    bar = likely.topk(taken, dim=-1).values[..., -1:]
    within = torch.nn.functional.pad(likely + doubt >= bar, (0, -glanced.shape[1] % LANES))
    tiles = within.unflatten(2, (-1, LANES)).any(-1).repeat_interleave(LANES, dim=2)[..., : glanced.shape[1]]
    return torch.nn.functional.pad(tiles, (FIRST, 0), value=True) | (ends <= beyond)[:, None]
