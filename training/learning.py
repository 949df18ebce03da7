"""What every run learns by: the loss, the optimisers, their rate, and one update. Knows no sample and no file."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from training.muon import Muon


def summed_loss(logits: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of cross entropies; logits (rows, slots, vocabulary), slots and weights (rows, slots)."""
    flat, target = logits[:, :-1].flatten(0, 1).float(), slots[:, 1:].flatten()
    losses = torch.nn.functional.cross_entropy(flat, target, reduction="none")
    return (losses * weights[:, 1:].flatten()).sum()


def optimizers(
    trained: Iterable[Tensor], tables: Iterable[Tensor], rate: float, decay: float, *, muon: bool
) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices and AdamW for tables and vectors.

    Args:
        tables: embeddings and heads
        decay: of matrices and tables
    """
    trained, apart = list(trained), {id(p) for p in tables}
    matrices = [p for p in trained if p.dim() == 2 and id(p) not in apart] if muon else []
    taken = {id(p) for p in matrices}
    rest = [p for p in trained if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=(0.9, 0.95))
    return [adamw, Muon(matrices, lr=rate, weight_decay=decay)] if matrices else [adamw]


def rate_at(highest: float, warm: float, done: float, total: float) -> float:
    """Warm up until `warm` is 1, stay, and in the last third of `total` go down to a twentieth of the highest rate."""
    left = (total - done) / (total / 3)
    return highest * min(1.0, warm) * max(0.05, min(1.0, left))


def descend(optimizers: list[torch.optim.Optimizer], trained: Iterable[Tensor], rate: float) -> None:
    """One update by the gradients, which are clipped and then forgotten."""
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
