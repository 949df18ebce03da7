"""What a tier has located, held against what was written."""

from __future__ import annotations

import torch
from torch import Tensor

from cache import Places

Located = tuple[int, list[tuple[int, Tensor]], Places]
"""A layer, slots with what they held, and where all heads of them were said to lie."""


def check_located(located: Located | None, held: dict[int, Tensor]) -> None:
    """What was located last is what it was, whatever has been done since; `held` has what lives, by slot.

    What was let go meanwhile may be anything, and its slot may be another block's.
    """
    if located is None:
        return
    layer, slots, places = located
    keys, values = (x.cpu() for x in places.copied())
    for at, (slot, written) in enumerate(slots):
        if held.get(slot) is written:
            assert torch.equal(keys[:, at], written[0, layer])
            assert torch.equal(values[:, at], written[1, layer])
