"""What the landmarks of an index say to queries, and which blocks pairs and sections stand for. Plain torch.

Letters in shapes: H KV heads, T queries, G query heads per KV head, N far blocks, P pairs of those of whole sections.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cache import FIRST, LANES, PAIR, SECTION, BlockIndex, pairs_opened, tiles_opened
from engine.attention.base import RetrievalSettings
from engine.attention.choosing import shares
from engine.attention.rows import Rows


@dataclass(frozen=True)
class Judged:
    """How promising far blocks are.

    Attributes:
        scores, gauges: by which they are chosen, and what they weigh if the rule can tell (H, T, G, N) each
        pooled: those that sections stand for if they are not read, bool (T, N); None for none
        closed: those that may not be chosen, for their pair was not opened, bool (H, T, N); None for none
    """

    scores: Tensor
    gauges: Tensor
    pooled: Tensor | None = None
    closed: Tensor | None = None


def judged(
    settings: RetrievalSettings, index: BlockIndex, rows: Rows, ends: Tensor, far_blocks: int, chosen: int
) -> Judged:
    """What the landmarks of far blocks say.

    For queries with many blocks scores and gauges are the same: one number for each then tells whether it is read and
    what it weighs if it is not; and of most blocks it is half of their pair's.

    Args:
        ends: for each query the first block that it may not choose any more (T,)
        chosen: so many are to be chosen
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
        return Judged(scores, gauges)
    many = ends > settings.few_blocks
    assert index.usual is not None
    of_queries = rule.look_at_profile(rows.far_queries.flatten(1, 2))  # (H, T * G, D)
    told = (of_queries @ index.usual.profile[..., None])[..., 0]
    weights = rule.judge(rule.by_profile(products, told, index.largest(far_blocks)), size)[1].view(gauges.shape)
    inside = pooled(settings, ends, far_blocks)
    weights, closed = closed_pairs(settings, index, rows, weights, told, inside, pairs_opened(chosen))
    scores, gauges = (torch.where(many[:, None, None], weights, each) for each in (scores, gauges))
    return Judged(scores, gauges, inside & many[:, None], closed & many[:, None])


def closed_pairs(
    settings: RetrievalSettings, index: BlockIndex, rows: Rows, weights: Tensor, told: Tensor, inside: Tensor,
    opened: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Of all but the best pairs each block weighs half of what the pair does.

    Args:
        weights: of blocks by themselves (H, T, G, N)
        told: products of queries with the usual profile (H, T * G)
        inside: blocks of whole sections, bool (T, N)
        opened: so many pairs are opened

    Returns:
        Weights, and which of the blocks are closed, bool (H, T, N)
    """
    assert index.pairs is not None
    assert index.usual is not None
    rule, pairs = settings.rule, inside.shape[1] // SECTION * (SECTION // PAIR)
    blocks, size = pairs * PAIR, PAIR * (rows.block_size // index.shape.landmarks)
    looking = rule.look_at_pairs(rows.far_queries.flatten(1, 2), index.usual)
    products = index.pairs.products(looking, pairs)
    known = rule.pairs_by_profile(products, told, index.pairs.largest(pairs))
    of_pairs = rule.judge(known, size)[1].view(*weights.shape[:3], pairs)  # (H, T, G, P)
    shut = ~inside[:, :blocks:PAIR]  # (T, P)
    wanted = shares(of_pairs, shut).masked_fill(shut, -torch.inf)  # (H, T, P)
    best = wanted.topk(min(opened, pairs), dim=-1).indices
    closed = torch.ones_like(wanted, dtype=torch.bool).scatter_(2, best, False) & ~shut
    closed = torch.nn.functional.pad(closed.repeat_interleave(PAIR, 2), (0, inside.shape[1] - blocks))
    halves = torch.nn.functional.pad(of_pairs.repeat_interleave(PAIR, 3), (0, inside.shape[1] - blocks))
    return torch.where(closed[:, :, None], halves, weights), closed


def pooled(settings: RetrievalSettings, ends: Tensor, far_blocks: int) -> Tensor:
    """The blocks of whole sections between the sinks and the end of each query: bool (T, N)."""
    sections = torch.arange(far_blocks, device=ends.device) // SECTION
    return (SECTION * sections >= settings.sink_blocks) & (sections < (ends // SECTION)[:, None])


def in_opened_tiles(
    settings: RetrievalSettings, index: BlockIndex, rows: Rows, ends: Tensor, far_blocks: int, chosen: int
) -> Tensor | None:
    """Which blocks a query may choose that looks at tiles first: bool (H, T, N), None for all.

    Those of the likeliest tiles of the stretches that are whole before its end, and all that are in none of these.

    Args:
        ends: for each query the first block that it may not choose any more (T,)
        chosen: so many are to be chosen
    """
    beyond = settings.tiles_beyond(rows.queries.shape[2])
    if beyond is None or far_blocks <= beyond or not index.stretches.all:
        return None
    looking, each = settings.rule.look(rows.far_queries, rows.own)[:, :, 0], index.stretches.all[0].tiles
    likely, numbers = index.stretches.likely(looking), index.stretches.numbers  # (H, T, tiles), (H, tiles, 16)
    whole = ((ends - FIRST) // (LANES * each)).where(ends > beyond, 0)  # stretches (T,)
    seen = torch.ones(*looking.shape[:2], far_blocks, dtype=torch.bool, device=ends.device)
    heads = torch.arange(len(seen), device=ends.device)[:, None, None]
    for tiles in (each * count for count in whole.unique().tolist() if count > 0):
        mine = whole * each == tiles
        best = likely[:, mine, :tiles].topk(tiles_opened(tiles, chosen), dim=-1).indices
        inside = seen[:, mine]
        inside[..., FIRST : FIRST + LANES * tiles] = False
        seen[:, mine] = inside.scatter(2, numbers[heads, best].flatten(2).long(), True)
    return seen
