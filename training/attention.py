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


def placed_scores(q: Tensor, k: Tensor, inv_freq: Tensor, settings: LandmarkSettings) -> Tensor:
    """Scores (batch, heads, slots, slots) of unrotated q, k (batch, heads, slots, dim), unscaled.

    Blocks up to `recent_blocks` before the query's own are scored at their true distance; every block
    further back as if it stood in the slot just before the recent ones.
    """
    slots = torch.arange(q.shape[2], device=q.device)
    block, offset = slots // settings.block_size, slots % settings.block_size
    far_start = (settings.recent_blocks + 1) * settings.block_size
    near = rotate(q, slots, inv_freq) @ rotate(k, slots, inv_freq).transpose(-1, -2)
    far = rotate(q, far_start + offset, inv_freq) @ rotate(k, offset, inv_freq).transpose(-1, -2)
    return torch.where(block[:, None] - block[None, :] > settings.recent_blocks, far, near)


def attended_blocks(landmark: Tensor, settings: LandmarkSettings, *, tied: bool) -> Tensor:
    """Which earlier blocks each query reads: bool (batch, heads, slots, blocks).

    Args:
        landmark: landmark scores (batch, heads, slots, blocks)
        tied: all landmarks score the same (layer 0), so the most recent ones are taken
    """
    blocks = torch.arange(landmark.shape[-1], device=landmark.device)
    own = torch.arange(landmark.shape[-2], device=landmark.device) // settings.block_size
    age = own[:, None] - blocks[None, :]  # (slots, blocks): 0 is the query's own block
    always = (age >= 0) & ((age <= settings.recent_blocks) | (blocks < settings.sink_blocks))
    candidate = (age > 0) & ~always
    fetch = settings.blocks_per_head
    if tied:
        return (always | (candidate & (age <= settings.recent_blocks + fetch))).expand_as(landmark)
    if landmark.shape[-1] <= settings.recent_blocks + settings.sink_blocks + fetch:
        return (always | candidate).expand_as(landmark)
    far = landmark.detach().masked_fill(~candidate, -torch.inf)
    threshold = far.topk(fetch, dim=-1).values[..., -1:]
    return always | (candidate & (far >= threshold))


def grouped_softmax(scores: Tensor, settings: LandmarkSettings, *, tied: bool) -> Tensor:
    """Attention weights (batch, heads, slots, slots) from scaled scores of the same shape.

    Every score of an earlier block gains `landmark score - logsumexp(block)`; landmarks get weight 0;
    then one softmax. The number of slots is a multiple of `block_size`.
    """
    size = settings.block_size
    slots = torch.arange(scores.shape[-1], device=scores.device)
    by_block = scores.unflatten(-1, (-1, size))  # (batch, heads, slots, blocks, block_size)
    landmark = by_block[..., -1]
    own = slots[:, None] // size == slots[None, ::size] // size  # (slots, blocks)
    gate = landmark - by_block[..., :-1].logsumexp(-1)
    gate = gate.masked_fill(~attended_blocks(landmark, settings, tied=tied), -torch.inf)
    gate = torch.where(own, torch.zeros_like(gate), gate)
    hidden = (slots[None, :] > slots[:, None]) | (slots[None, :] % size == size - 1)
    biased = (by_block + gate[..., None]).flatten(-2).masked_fill(hidden, -torch.inf)
    # The weight of a block's first slot for itself is never hidden, so no row is empty.
    return biased.softmax(-1)


def landmark_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    inv_freq: Tensor,
    landmarks: LandmarkSettings,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: q (batch, heads, slots, dim), k and v with kv_heads, all unrotated."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = placed_scores(query * scaling, key, inv_freq, landmarks)
    weights = grouped_softmax(scores, landmarks, tied=bool(module.layer_idx == 0))
    return (weights @ value).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the attention function known to transformers under `NAME`."""
    AttentionInterface.register(NAME, landmark_attention)
