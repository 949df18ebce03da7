"""Attention to copies of blocks, by the kernel, against the same sums in plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cache import BlockIndex, IndexShape, Summary, kernels

HEADS, GROUPS, QUERIES, CHANNELS = 2, 3, 4, 32
NOTHING = -1e30


def index_of(blocks: int, size: int, seed: int) -> BlockIndex:
    generator = torch.Generator().manual_seed(seed)
    index = BlockIndex(HEADS, IndexShape((CHANNELS,), copies=(size, CHANNELS), rounded=True))
    for start in range(0, blocks, 7):
        count = min(7, blocks - start)
        keys, values = (torch.randn(HEADS, count, size, CHANNELS, generator=generator) for _ in range(2))
        index.add(Summary(keys.mean(2, keepdim=True), copies=(keys, values)))
    return index


def in_8_bits(numbers: Tensor) -> Tensor:
    """Rounded along the last dimension, as the kernels round what meets numbers of 4 bits."""
    scales = numbers.abs().amax(-1, keepdim=True).clamp(min=1e-35) / 127
    return (numbers / scales).round() * scales


def attended(
    index: BlockIndex, queries: Tensor, blocks: Tensor, weight: Tensor, rest: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Of one session: queries and rest (H, T, G, D), blocks (H, T, K), weight (H, T, G)."""
    keys, values = index.copied(blocks.clamp(min=0))  # (H, T, K, B, D)
    scores = in_8_bits(queries) @ keys.flatten(2, 3).mT
    there = (blocks >= 0).repeat_interleave(size, -1)[:, :, None]
    scores = scores.masked_fill(~there, NOTHING)
    whole = torch.cat((scores, weight[..., None]), -1)
    shares = whole.softmax(-1)
    read, left = shares[..., :-1], shares[..., -1:]
    # weights are rounded with the values' scales, sixteen together
    scales = values.flatten(2, 3).abs().amax(-1)[:, :, None] / 7
    rounded = in_8_bits((read * scales).unflatten(-1, (-1, 16))).flatten(-2) / scales
    return rounded @ values.flatten(2, 3) + left * rest, whole.logsumexp(-1)


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("fetched", [0, 2])
def test_copies_are_attended_to_where_they_lie(size: int, fetched: int) -> None:
    """Two sessions at once, one a fork; some queries find fewer blocks, one none, and one has no estimate before."""
    parent = index_of(150, size, 1)
    fork = parent.fork(33)
    fork.unpack(index_of(20, size, 2).pack(0, 20))
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(HEADS, 2 * QUERIES, GROUPS, CHANNELS, generator=generator)
    rest = torch.randn(HEADS, 2 * QUERIES, GROUPS, CHANNELS, generator=generator)
    weight = 3 + torch.randn(HEADS, 2 * QUERIES, GROUPS, generator=generator)
    weight[:, 1], rest[:, 1] = NOTHING, 0.0
    numbers = [torch.randperm(n, generator=generator)[:9] for n in (150, 53) for _ in range(HEADS * QUERIES)]
    blocks = torch.stack(numbers).view(2, HEADS, QUERIES, 9).transpose(0, 1).flatten(1, 2).contiguous()
    blocks[:, 2, 5:], blocks[:, 3, fetched:] = -1, -1
    found, mass = rest.flatten(1, 2).clone(), weight.clone()
    tables = [parent.copies_table, fork.copies_table]
    arrays = (
        queries.flatten(1, 2).numpy(), np.array([0, QUERIES, 2 * QUERIES]), np.concatenate(tables),
        np.cumsum([0, *map(len, tables)]), size, blocks.numpy(), fetched, mass.numpy(), found.numpy(),
    )  # fmt: skip
    kernels("copy").attend_copies(*arrays, 0, 1)
    kernels("copy").attend_copies(*arrays, 1, 2)
    for place, index in enumerate((parent, fork)):
        mine = slice(place * QUERIES, (place + 1) * QUERIES)
        given = (queries[:, mine], blocks[:, mine, fetched:], weight[:, mine], rest[:, mine])
        expected, masses = attended(index, *given, size)
        torch.testing.assert_close(found.view_as(rest)[:, mine], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mass[:, mine], masses, atol=1e-4, rtol=1e-4)
