"""Mean and variance of a block's keys: what q · key is like, had they scattered normally.

Then q · key is normal too, with mean q·mean and variance Σ_channels q²·variance (the channels taken as independent).
From these follow, in closed form, the block's best key and its mass:

- the largest of B such numbers is expected at mean + s·σ, s being the normal quantile of the largest of B (Blom 1958);
- log(mean of exp) starts as mean + σ²/2, the cumulant generating function of a Gaussian, and for large σ it grows no
  faster than the largest number does. A hyperbola has both: mean + s·√(s² + σ²) - s². Without the bend, blocks whose
  keys scatter would seem to weigh far too much.

Channels are not independent. Where the index keeps the direction in which a block's keys scatter most, for the slope of
its mean value, the variance along it is known as it is, (q·direction)², and only the rest is taken by channel.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from cache.compiling import kernels
from cache.landmarks.base import LandmarkRule
from cache.parallel import over_heads
from cache.sections import PAIR, PAIRS, SECTION, Gathered
from cache.summary import Summary
from cache.usual import Usual, narrow, usual

WORK = 64
"""Products for a number of a block when its pair and its section are told."""


class Moments(LandmarkRule):
    """Chooses by the expected best key, weighs by the expected mass."""

    name = "moments"
    estimates_mass = True
    knows_slopes = True
    gathers = True

    def widths(self, head_dim: int) -> tuple[int, ...]:
        return head_dim, head_dim

    def summarise(self, keys: Tensor) -> Tensor:
        keys = keys.float()
        return torch.cat((keys.mean(-2), keys.var(-2, correction=0)), dim=-1)

    def encode(self, queries: Tensor) -> Tensor:
        return torch.cat((queries, queries.square()), dim=-1)

    def beside_slope(self, landmarks: Tensor, along: Tensor) -> Tensor:
        mean, variance = landmarks.chunk(2, dim=-1)
        return torch.cat((mean, (variance - along[:, :, None].square()).clamp(min=0)), dim=-1)

    def pair_widths(self, head_dim: int) -> tuple[int, ...]:
        return narrow(head_dim), narrow(head_dim), 1

    def usual(self, blocks: Summary) -> Usual:
        return usual(apart(blocks))

    def gather(self, blocks: Summary, usual: Usual) -> tuple[Summary, Summary]:
        members = apart(blocks)
        if members.means.device.type == "cpu":
            return gathered(members, usual)
        pairs = members.together(PAIR)
        size = pairs.variances.amax(-1, keepdim=True)
        landmarks = torch.cat((usual.of_keys(pairs.means), usual.of_keys(pairs.along), size), dim=-1)
        whole = pairs.together(PAIRS)
        sections = usual.of_values(whole.values), usual.of_keys(whole.along), usual.of_values(whole.turning)
        return Summary(landmarks[:, :, None]), of_sections(*sections)

    def look_at_pairs(self, queries: Tensor, usual: Usual) -> Tensor:
        looking = usual.of_keys(queries)
        return torch.cat((looking, looking, torch.zeros_like(looking[..., :1])), dim=-1)

    def look_at_profile(self, queries: Tensor) -> Tensor:
        return queries.square()

    def by_profile(self, products: Tensor, told: Tensor, largest: Tensor) -> Tensor:
        mean, _, *along = products.unbind(-1)
        return torch.stack((mean, largest[:, None, :, 1] * told[..., None], *along), dim=-1)

    def pairs_by_profile(self, products: Tensor, told: Tensor, largest: Tensor) -> Tensor:
        mean, along, _ = products.unbind(-1)
        return torch.stack((mean, largest[:, None, :, 2] * told[..., None], along), dim=-1)

    def judge(self, products: Tensor, size: int) -> tuple[Tensor, Tensor]:
        mean, variance, *along = products.unbind(-1)
        for product in along:
            variance = variance + product.square()
        reach = expected_largest(size)
        return mean + reach * variance.sqrt(), mean + reach * (variance + reach * reach).sqrt() - reach * reach


def apart(blocks: Summary) -> Gathered:
    """The parts of blocks that have one landmark, a mean value and slopes each."""
    assert blocks.values is not None
    assert blocks.slopes is not None
    means, variances = blocks.landmarks[:, :, 0].chunk(2, dim=-1)
    return Gathered(means, variances, blocks.values, *blocks.slopes)


def of_sections(values: Tensor, along: Tensor, turning: Tensor) -> Summary:
    """What is kept of sections, which have no landmark: (H, N, W) each."""
    return Summary(values.new_empty(*values.shape[:2], 1, 0), values, (along, turning))


def gathered(blocks: Gathered, usual: Usual) -> tuple[Summary, Summary]:
    """`Moments.gather` by a kernel."""
    parts = np.stack([blocks.means, blocks.variances, blocks.values, blocks.along, blocks.turning])  # (5, H, N, D)
    heads, count, wide = *parts.shape[1:3], usual.keys.shape[2]
    pairs = np.empty((heads, count // PAIR, 2 * wide + 1), np.float32)
    sections = np.empty((3, heads, count // SECTION, wide), np.float32)
    of_heads = parts, usual.keys.numpy(), usual.values.numpy(), pairs, sections

    def work(some: slice) -> None:
        kernels("gathering").gather(*of_heads, some.start, some.stop)

    over_heads(work, heads, WORK * count * parts.shape[3])
    return Summary(torch.from_numpy(pairs)[:, :, None]), of_sections(*torch.from_numpy(sections))


def expected_largest(count: int) -> float:
    """Where the largest of `count` standard normal numbers is expected (Blom's approximation)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))
