"""Landmark attention over whole sequences, differentiable: what training computes.

The grouped softmax of Mohtashami & Jaggi 2023 (arXiv 2305.16300), with the placement that the engine
serves: near blocks at their true distance, far blocks all at one bounded distance, and per head only the
`blocks_per_head` far blocks with the highest landmark score. It is dense and keeps no cache; the engine's
retrieval is tested against it. Registered with transformers as an attention function: queries and keys come
in unrotated because the model is called with position 0 for every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "cairn_landmark_training"


@dataclass(frozen=True)
class LandmarkSettings:
    """Geometry of the attention, the same numbers that the served model's config carries.

    Attributes:
        block_size: slots of a block; the last one holds the landmark
        recent_blocks: blocks before the query's own that are always attended, at their true distance
        sink_blocks: first blocks of the sequence that are always attended
        blocks_per_head: far blocks that a head may fetch for each query
    """

    block_size: int = 16
    recent_blocks: int = 3
    sink_blocks: int = 1
    blocks_per_head: int = 8


def rotate(x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Rotary embedding of `x` (..., slots, dim) at `positions` (slots,), halves convention of Llama."""
    angles = positions[:, None].float() * inv_freq[None, :]  # (slots, dim / 2)
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def placed_scores(q: Tensor, k: Tensor, at: Tensor, inv_freq: Tensor, settings: LandmarkSettings) -> Tensor:
    """Scores (batch, heads, queries, slots) of unrotated q (batch, heads, queries, dim), k (batch, heads, slots, dim).

    Blocks up to `recent_blocks` before the query's own are scored at their true distance; every block
    further back as if it stood in the slot just before the recent ones.

    Args:
        at: slots of the queries (queries,)
    """
    slots = torch.arange(k.shape[2])
    near = rotate(q, at, inv_freq) @ rotate(k, slots, inv_freq).mT
    far = far_queries(q, at, inv_freq, settings) @ rotate(k, slots % settings.block_size, inv_freq).mT
    blocks = slots // settings.block_size
    return torch.where(at[:, None] // settings.block_size - blocks > settings.recent_blocks, far, near)


def far_queries(q: Tensor, at: Tensor, inv_freq: Tensor, settings: LandmarkSettings) -> Tensor:
    """Queries as every far block sees them, wherever it really stands."""
    far_start = (settings.recent_blocks + 1) * settings.block_size
    return rotate(q, far_start + at % settings.block_size, inv_freq)


def block_ages(at: Tensor, blocks: int, settings: LandmarkSettings) -> Tensor:
    """How many blocks before the query's own each block stands: (queries, blocks), negative ahead of it."""
    return at[:, None] // settings.block_size - torch.arange(blocks)


def always_read(age: Tensor, settings: LandmarkSettings) -> Tensor:
    """Own, recent and sink blocks: bool (queries, blocks) from ages of the same shape."""
    sinks = torch.arange(age.shape[1]) < settings.sink_blocks
    return (age >= 0) & ((age <= settings.recent_blocks) | sinks)


def best(landmark: Tensor, candidate: Tensor, fetch: int) -> Tensor:
    """The `fetch` candidates with the highest landmark score: bool (…, slots, blocks)."""
    if landmark.shape[-1] <= fetch:
        return candidate.expand_as(landmark)
    scores = landmark.detach().masked_fill(~candidate, -torch.inf)
    return candidate & (scores >= scores.topk(fetch, dim=-1).values[..., -1:])


def attended_blocks(landmark: Tensor, at: Tensor, settings: LandmarkSettings, *, tied: bool) -> Tensor:
    """Which blocks each query reads: bool (batch, heads, queries, blocks).

    Args:
        landmark: landmark scores (batch, heads, queries, blocks)
        at: slots of the queries (queries,)
        tied: all landmarks score the same (layer 0), so the most recent ones are taken
    """
    age = block_ages(at, landmark.shape[-1], settings)
    always = always_read(age, settings)
    candidate = (age > 0) & ~always
    if tied:
        return (always | candidate & (age <= settings.recent_blocks + settings.blocks_per_head)).expand_as(landmark)
    return always | best(landmark, candidate, settings.blocks_per_head)


def gates(by_block: Tensor) -> Tensor:
    """`landmark score - logsumexp(block)`: scores (…, blocks, block_size) -> (…, blocks)."""
    return by_block[..., -1] - by_block[..., :-1].logsumexp(-1)


def grouped_bias(scores: Tensor, at: Tensor, attended: Tensor, settings: LandmarkSettings) -> Tensor:
    """Scores (batch, heads, queries, slots) of which one plain softmax gives the grouped one.

    Every score of an earlier block gains its block's gate; what is not attended, ahead, or a landmark is -inf.
    The number of slots is a multiple of `block_size`. No row is empty: a slot sees its block's first one.
    """
    size, slots = settings.block_size, torch.arange(scores.shape[-1])
    by_block = scores.unflatten(-1, (-1, size))  # (batch, heads, queries, blocks, block_size)
    own = block_ages(at, by_block.shape[-2], settings) == 0
    gate = torch.where(own, 0.0, gates(by_block).masked_fill(~attended, -torch.inf))
    hidden = (slots > at[:, None]) | (slots % size == size - 1)
    return (by_block + gate[..., None]).flatten(-2).masked_fill(hidden, -torch.inf)


def grouped_softmax(scores: Tensor, settings: LandmarkSettings, *, tied: bool) -> Tensor:
    """Attention weights (batch, heads, slots, slots) from scaled scores of the same shape."""
    at = torch.arange(scores.shape[-1])
    landmark = scores[..., settings.block_size - 1 :: settings.block_size]
    return grouped_bias(scores, at, attended_blocks(landmark, at, settings, tied=tied), settings).softmax(-1)


def landmark_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    inv_freq: Tensor,
    landmarks: LandmarkSettings,
    crowd_queries: int = 0,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: q (batch, heads, slots, dim), k and v with kv_heads, all unrotated.

    Args:
        crowd_queries: so many last queries of each row also meet the blocks of the batch's other rows
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    query, tied = query * scaling, bool(module.layer_idx == 0)
    at = torch.arange(query.shape[2])
    if tied:  # in layer 0 only the most recent blocks are fetched, so there is no crowd to choose from
        crowd_queries = 0
    alone = at[: len(at) - crowd_queries]
    scores = placed_scores(query[:, :, : len(alone)], key, alone, inv_freq, landmarks)
    landmark = scores[..., landmarks.block_size - 1 :: landmarks.block_size]
    attended = attended_blocks(landmark, alone, landmarks, tied=tied)
    output = grouped_bias(scores, alone, attended, landmarks).softmax(-1) @ value
    if crowd_queries:
        last = at[len(alone) :]
        crowded = crowd_attention(query[:, :, len(alone) :], key, value, last, inv_freq, landmarks)
        output = torch.cat((output, crowded), dim=2)
    return output.transpose(1, 2).contiguous(), None


def crowd_attention(
    query: Tensor, key: Tensor, value: Tensor, at: Tensor, inv_freq: Tensor, settings: LandmarkSettings
) -> Tensor:
    """Attention of queries (batch, heads, queries, dim) over their own row and all blocks of the other rows.

    A short row has few blocks to choose from; a long session has thousands. Far blocks carry no distance, so the
    other rows' blocks are as good as a longer past: the queries learn to tell theirs from a crowd (Focused
    Transformer, Tworkowski et al. 2023, https://arxiv.org/abs/2307.03170, trains on such negatives).

    Args:
        at: slots of the queries (queries,)
    """
    size, rows, slots = settings.block_size, key.shape[0], key.shape[2]
    own = placed_scores(query, key, at, inv_freq, settings)  # (rows, heads, queries, slots)
    relative = rotate(key, torch.arange(slots) % size, inv_freq)
    pooled_keys, pooled_values = (
        x.transpose(0, 1).flatten(1, 2) for x in (relative, value)
    )  # (heads, rows * slots, dim)
    crowd = (far_queries(query, at, inv_freq, settings) @ pooled_keys.mT).unflatten(-1, (-1, size))
    age = block_ages(at, slots // size, settings)
    always = always_read(age, settings)
    landmark = torch.cat((own[..., size - 1 :: size], crowd[..., -1]), -1)  # (rows, heads, queries, own + all blocks)
    stranger = ~torch.eye(rows, dtype=torch.bool).repeat_interleave(slots // size, 1)  # (rows, all blocks)
    candidate = torch.cat(
        (((age > 0) & ~always).expand(rows, 1, -1, -1), stranger[:, None, None].expand(-1, 1, len(at), -1)), -1
    )
    chosen = best(landmark, candidate, settings.blocks_per_head)
    mine, theirs = chosen[..., : slots // size], chosen[..., slots // size :]
    crowd = crowd + gates(crowd).masked_fill(~theirs, -torch.inf)[..., None]
    crowd = crowd.masked_fill(torch.arange(size) == size - 1, -torch.inf).flatten(-2)
    weights = torch.cat((grouped_bias(own, at, always | mine, settings), crowd), -1).softmax(-1)
    return weights[..., :slots] @ value + weights[..., slots:] @ pooled_values


def register() -> None:
    """Make the attention function known to transformers under `NAME`."""
    AttentionInterface.register(NAME, landmark_attention)
