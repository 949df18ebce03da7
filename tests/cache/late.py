"""Copies that happen as late as a device may do them: what does not wait for one reads what was there before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cache.tiers import Places


class LateCopies:
    """As `StreamCopies`, but on a CPU, where computing never waits: a copy up is made when it is reached."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.begun = 0
        self.waiting: list[tuple[int, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]] = []
        self.fallen: list[Fallen] = []

    def up(self, pages: Places, frames: Tensor, keys: Tensor, values: Tensor) -> int:
        self.begun += 1
        self.waiting.append((self.begun, frames.clone(), pages.copied(), (keys, values)))
        return self.begun

    def reach(self, copy: int) -> None:
        while self.waiting and self.waiting[0][0] <= copy:
            _, frames, pages, wholes = self.waiting.pop(0)
            for whole, came in zip(wholes, pages, strict=True):
                whole.index_copy_(0, frames.to(whole.device), came.to(whole.device))

    def down(self, pages: Tensor) -> Fallen:
        self.fallen.append(Fallen(pages.cpu().clone()))
        return self.fallen[-1]


@dataclass
class Fallen:
    """A descent that is done when a test says so, or when somebody waits for it."""

    pages: Tensor
    done: bool = False

    def take(self) -> Tensor:
        self.done = True
        return self.pages
