"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) in fp32.

`torch.optim.Muon` orthogonalises in bf16, which a CPU without bf16 units runs four times slower than fp32;
this one also takes all matrices of a shape at once. The step is scaled as AdamW's (Moonshot, arXiv 2502.16982).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly: (count, rows, columns) -> the same, singular values near 1."""
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; for hidden matrices only (embeddings and norms go to AdamW)."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._step(parameters, group["lr"], group["momentum"], group["weight_decay"])

    def _step(self, parameters: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        updates = []
        for parameter in parameters:
            assert parameter.grad is not None
            buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            buffer.lerp_(parameter.grad, 1 - momentum)
            updates.append(parameter.grad.lerp(buffer, momentum))
        scale = 0.2 * max(parameters[0].shape) ** 0.5
        for parameter, update in zip(parameters, orthogonalise(torch.stack(updates)), strict=True):
            parameter.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * scale)
