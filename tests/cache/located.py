"""What a tier has located, held against what was written."""

from __future__ import annotations

import torch
from torch import Tensor

from cache import Places

Located = tuple[int, list[int], Places]
"""A layer, slots, and where all heads of them were said to lie."""


def check_located(located: Located | None, held: dict[int, Tensor]) -> None:
    """What was located last is what it was, whatever has been done since; `held` has what lives, by slot."""
    if located is None:
        return
    layer, slots, places = located
    keys, values = (x.cpu() for x in places.copied())
    for at, slot in enumerate(slots):
        if slot in held:
            assert torch.equal(keys[:, at], held[slot][0, layer])
            assert torch.equal(values[:, at], held[slot][1, layer])
