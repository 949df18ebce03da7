"""Attention over blocks, in parts that share one softmax.

A part is a set of blocks with its scores and values. In a *dense* part all queries look at the same blocks; in
a *fetched* part each query and KV head has blocks of its own. `combine` makes one softmax over all parts, so
it does not matter which part a block came through. Knows no session and no positions: queries and keys come
in rotated.

Letters in shapes: H KV heads, G query heads per KV head, T queries, M or K blocks, B positions of a block, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import BlockIndex


class Part(Protocol):
    """Blocks that a query reads, or an estimate of blocks that it does not read."""

    @property
    def scores(self) -> Tensor:
        """(H, T, G, blocks, B), -inf where a query may not look."""
        ...

    def read(self, weights: Tensor) -> Tensor:
        """Sum of values by weights (H, T, G, blocks * B): (H, T, G, D)."""
        ...


@dataclass(frozen=True)
class BlocksPart:
    """Scores (H, T, G, blocks, B), -inf where a query may not look; values (H, M, B, D) or (H, T, K, B, D)."""

    scores: Tensor
    values: Tensor

    def joined(self, others: BlocksPart) -> BlocksPart:
        """These blocks and others behind them, each query with blocks of its own."""
        return BlocksPart(
            torch.cat((self.scores, others.scores), dim=3), torch.cat((self.values.float(), others.values), dim=2)
        )

    def weighing(self, log_mass: Tensor) -> BlocksPart:
        """The same blocks, each with a given mass (H, T, G, blocks) that its keys share."""
        own = self.scores.logsumexp(-1, keepdim=True)
        return BlocksPart(self.scores + (log_mass[..., None] - own).nan_to_num(neginf=0.0, posinf=0.0), self.values)

    def read(self, weights: Tensor) -> Tensor:
        """Sum of values by weights (H, T, G, blocks * B): (H, T, G, D)."""
        heads, queries, groups, _ = weights.shape
        if self.values.dim() == 4:
            dense = weights.reshape(heads, queries * groups, -1) @ self.values.flatten(1, 2).float()
            return dense.view(heads, queries, groups, -1)
        return weights @ self.values.flatten(2, 3).float()


@dataclass(frozen=True)
class Scoring:
    """What every score goes through.

    Attributes:
        gated: blocks end in a landmark that gates them (grouped softmax)
        softcap: scores are squashed to (-softcap, softcap), as Gemma 2 does
        void: (H, G), a score that shares the softmax and has no value ("attention sink" of GPT-OSS); it is final
    """

    gated: bool
    softcap: float | None = None
    void: Tensor | None = None

    def cap(self, scores: Tensor) -> Tensor:
        """Squash scores, if the model does."""
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def finish(self, scores: Tensor, allowed: Tensor, own: Tensor | None) -> Tensor:
        """Cap, gate and mask scores (H, T, G, blocks, B).

        Args:
            allowed: bool, broadcastable to the scores: which keys a query may read
            own: bool (T, blocks): blocks that are the query's own and so not gated; None for no such block
        """
        scores = self.cap(scores)
        if self.gated:
            scores = gate(scores, own)
        return scores.masked_fill(~allowed, -torch.inf)


def gate(scores: Tensor, own: Tensor | None) -> Tensor:
    """Grouped softmax as a bias: `landmark score - logsumexp(block)` on each block, landmarks hidden.

    With it one plain softmax gives a token of another block its share within the block times the landmark's
    share among the local tokens and landmarks (Mohtashami & Jaggi 2023, section 3).
    """
    text, landmark = scores[..., :-1], scores[..., -1:]
    shift = landmark - text.logsumexp(-1, keepdim=True)
    if own is not None:
        shift = shift.masked_fill(own[:, None, :, None], 0.0)
    return torch.cat((text + shift, torch.full_like(landmark, -torch.inf)), dim=-1)


def dense_part(
    queries: Tensor, keys: Tensor, values: Tensor, scoring: Scoring, allowed: Tensor, own: Tensor
) -> BlocksPart:
    """All queries look at the same blocks.

    Args:
        queries: (H, T, G, D), scaled
        keys, values: (H, M, B, D)
        allowed: bool (T, M, B)
        own: bool (T, M)
    """
    heads, count, groups, _ = queries.shape
    flat = queries.flatten(1, 2) @ keys.flatten(1, 2).mT  # (H, T * G, M * B)
    scores = flat.view(heads, count, groups, *keys.shape[1:3])
    return BlocksPart(scoring.finish(scores, allowed[:, None], own), values)


def fetched_part(queries: Tensor, keys: Tensor, values: Tensor, scoring: Scoring, valid: Tensor) -> BlocksPart:
    """Each query and head looks at its own blocks.

    Args:
        queries: (H, T, G, D), or (H, T, K, G, D) where each block is seen from another distance
        keys, values: (H, T, K, B, D)
        valid: bool (H, T, K), False where fewer than K blocks were there to fetch
    """
    if queries.dim() == 4:
        scores = (queries @ keys.flatten(2, 3).mT).unflatten(-1, keys.shape[2:4])  # (H, T, G, K, B)
    else:
        scores = (queries @ keys.mT).transpose(2, 3)  # (H, T, K, G, B) -> (H, T, G, K, B)
    return BlocksPart(scoring.finish(scores, valid[:, :, None, :, None], None), values)


@dataclass(frozen=True)
class EstimatedPart:
    """Blocks that are not read, each as one key whose score is the logarithm of its mass and one value, their mean.

    RetroInfer (Chen et al. 2025, https://arxiv.org/abs/2505.02922) estimates what it leaves out in this way.

    Args:
        log_mass: (H, T, G, N), -inf for blocks that are read or ahead
        queries: (H, T, G, D), scaled, as these blocks see them
        pooled: blocks that their section's mean value stands for, bool (T, N)
    """

    log_mass: Tensor
    queries: Tensor
    index: BlockIndex
    pooled: Tensor | None = None

    @property
    def scores(self) -> Tensor:
        return self.log_mass[..., None]

    def read(self, weights: Tensor) -> Tensor:
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(weights.shape[2], dim=0)[None]
        values = self.index.weigh_values(weights.flatten(1, 2), self.queries.flatten(1, 2), pooled)
        return values.view(*weights.shape[:3], -1)


@dataclass(frozen=True)
class AttendedPart:
    """Blocks that were attended to by themselves, and are not at hand any more.

    Args:
        log_mass: logarithm of the exp-sum of each block, or of all together (H, T, G, N or 1)
        output: of a softmax over them alone (H, T, G, D)
    """

    log_mass: Tensor
    output: Tensor

    @property
    def scores(self) -> Tensor:
        return self.log_mass[..., None]

    def read(self, weights: Tensor) -> Tensor:
        return weights.sum(-1, keepdim=True) * self.output


def attended(pieces: Iterable[Part], *, by_block: bool) -> AttendedPart:
    """One softmax over pieces that come one after the other, of which no two are needed at once.

    A running sum that is scaled when a larger score comes (Milakov & Gimelshein 2018,
    https://arxiv.org/abs/1805.02867).

    Args:
        by_block: keep what each block weighs, not only all of them together
    """
    masses, whole, output = list[Tensor](), torch.tensor(-torch.inf), torch.tensor(0.0)
    for piece in pieces:
        masses.append(piece.scores.logsumexp(-1))  # (H, T, G, blocks)
        mass = masses[-1].logsumexp(-1)  # (H, T, G)
        both = torch.logaddexp(whole.to(mass.device), mass)
        # Where a query may look at nothing yet, infinity less infinity is no number, and weighs nothing.
        before, now = ((each - both).exp().nan_to_num(0.0)[..., None] for each in (whole.to(mass.device), mass))
        weights = (piece.scores - mass[..., None, None]).exp_().nan_to_num_(0.0)
        output = output.to(mass.device) * before + now * piece.read(weights.flatten(3))
        whole = both
    return AttendedPart(torch.cat(masses, dim=-1) if by_block else whole[..., None], output)


def combine(parts: Sequence[Part], void: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """One softmax over all parts.

    Args:
        void: (H, G), the score of what takes attention and has no value

    Returns:
        The output (H, T, G, D), and for each part the attention that each of its blocks got,
        summed over query heads and positions: (H, T, blocks).
    """
    scores = torch.cat([part.scores.flatten(3) for part in parts], dim=-1)
    counts = [part.scores[0, 0, 0].numel() for part in parts]
    if void is not None:
        scores = torch.cat((scores, void[:, None, :, None].expand(-1, scores.shape[1], -1, 1)), dim=-1)
    weights = scores.softmax(-1)[..., : sum(counts)].split(counts, dim=-1)
    output = sum(part.read(weight) for part, weight in zip(parts, weights, strict=True))
    assert isinstance(output, Tensor)
    masses = [w.unflatten(-1, p.scores.shape[3:]).sum((2, 4)) for p, w in zip(parts, weights, strict=True)]
    return output, masses


def lose(void: Tensor, weight: NDArray[np.float32], output: Tensor) -> None:
    """Let a score (H, G) without a value take its part of an estimate: weight (H, T, G), output (H, T, G, D)."""
    before = torch.from_numpy(weight)
    after = torch.logaddexp(before, void[:, None])
    output *= (before - after).exp()[..., None]
    before.copy_(after)
