"""How a block's mean value turns with the query, against the softmax that it stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from cache import slopes

BLOCKS, SIZE, DIM = 6, 16, 12


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_of_keys_on_a_line_it_is_the_covariance() -> None:
    line = random(BLOCKS, SIZE, 1, seed=1)
    keys = line * random(BLOCKS, 1, DIM, seed=2) + 0.01 * random(BLOCKS, SIZE, DIM, seed=3)
    values = line * random(BLOCKS, 1, DIM, seed=4) + 0.01 * random(BLOCKS, SIZE, DIM, seed=5)
    centred = [x - x.mean(1, keepdim=True) for x in (keys, values)]
    covariance = centred[1].mT @ centred[0] / SIZE  # (BLOCKS, DIM of values, DIM of keys)
    left, sizes, right = torch.linalg.svd(covariance)
    best = sizes[:, :1, None] * left[:, :, :1] * right[:, :1]
    key, turn = slopes(keys, values)
    torch.testing.assert_close(turn[:, :, None] * key[:, None], best, atol=1e-3, rtol=1e-3)


def test_keys_scatter_along_it_as_it_says() -> None:
    """What is left of each channel's variance is never below zero, and none is left of keys on a line."""
    keys = random(BLOCKS, SIZE, DIM, seed=10)
    key, _ = slopes(keys, keys)
    assert (keys.var(1, correction=0) - key.square() > -1e-5).all()
    line = random(BLOCKS, SIZE, 1, seed=11) * random(BLOCKS, 1, DIM, seed=12)
    key, _ = slopes(line, line)
    query = random(DIM, seed=13)
    torch.testing.assert_close((key @ query).square(), (line @ query).var(1, correction=0), atol=1e-4, rtol=1e-4)


def test_the_mean_value_of_a_block_is_nearer_with_it() -> None:
    """Values that go with the keys, as in a block where attention to one key matters."""
    keys = random(BLOCKS, SIZE, DIM, seed=6)
    values = keys @ random(DIM, DIM, seed=7) / 3
    query = random(DIM, seed=8) / DIM**0.5
    true = ((keys @ query).softmax(-1)[:, None] @ values)[:, 0]
    mean = values.mean(1)
    key, turn = slopes(keys, values)
    turned = mean + (key @ query)[:, None] * turn
    assert (turned - true).norm() < 0.9 * (mean - true).norm()


def test_equal_keys_leave_the_mean_as_it_is() -> None:
    key, turn = slopes(torch.ones(2, SIZE, DIM), random(2, SIZE, DIM, seed=9))
    assert not key.any()
    assert turn.isfinite().all()
