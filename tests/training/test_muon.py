"""Muon: what it does to a gradient, and that it trains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.muon import Muon, orthogonalise


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (64, 96), (1, 5)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_come_near_one(shape: tuple[int, int], scale: float) -> None:
    matrices = scale * random(3, *shape)
    result = orthogonalise(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert 0.3 < values.min() <= values.max() < 1.3


@pytest.mark.parametrize("shape", [(12, 12), (10, 30), (30, 10)])
def test_singular_vectors_stay(shape: tuple[int, int]) -> None:
    """Only the singular values change: seen between its singular vectors, the result is diagonal and positive."""
    matrix = random(1, *shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    seen = (u.mT @ orthogonalise(matrix) @ v.mT)[0]
    assert (seen - seen.diagonal().diag()).abs().max() < 1e-4
    assert seen.diagonal().min() > 0.3


def test_a_batch_is_as_one_by_one() -> None:
    matrices = random(4, 6, 9)
    torch.testing.assert_close(orthogonalise(matrices), torch.cat([orthogonalise(m[None]) for m in matrices]))


def test_a_step_by_hand() -> None:
    """Momentum twice blended (Nesterov), orthogonalised, scaled as AdamW's; the weights decay before."""
    start, gradients = random(6, 4), [random(6, 4, seed=1), random(6, 4, seed=2)]
    parameter = torch.nn.Parameter(start.clone())
    optimizer = Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected, momentum = start, torch.zeros(6, 4)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        update = orthogonalise((0.1 * gradient + 0.9 * momentum)[None])[0]
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 6**0.5 * update
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-5, rtol=1e-5)


def test_it_descends() -> None:
    target, weights = random(10, 7, seed=3), [torch.nn.Parameter(torch.zeros(10, 7)) for _ in range(2)]
    optimizer = Muon(weights, lr=0.2, weight_decay=0.0)
    losses = []
    for _ in range(60):
        loss = sum(((w - target) ** 2).mean() for w in weights)
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
