"""Tells a tally what queries read, from the parts that they attended to."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.attention.parts import EstimatedPart, Part
from engine.tally import Tally


def count_read(
    tally: Tally | None, layer: int, sinks: int, parts: list[Part], masses: list[Tensor], fetched: Tensor | None
) -> None:
    """What a span's queries read, if somebody wants to know.

    Args:
        sinks: so many first blocks are always read
        parts: near, shared and estimated ones as far as there are, then the fetched one
        masses: attention by block (kv_heads, rows, blocks) of each part
        fetched: block numbers (kv_heads, rows, blocks) of the last part, if it is one of fetched blocks
    """
    if tally is None:
        return
    tally.local += float(masses[0].sum())
    between = list(zip(parts, masses, strict=True))[1:]
    if fetched is not None:
        tally.add(fetched.flatten().tolist(), between.pop()[1].flatten().tolist(), fetched.shape[2])
    for part, mass in between:
        if isinstance(part, EstimatedPart):
            tally.estimated += float(mass.sum())
        else:
            count_shared(tally, layer, sinks, mass)


def count_shared(tally: Tally, layer: int, sinks: int, mass: Tensor) -> None:
    """What all queries looked at: mass (kv_heads, rows, blocks) of blocks 0, 1, …, of which the first are sinks."""
    sinks = min(sinks, mass.shape[2])
    for block in range(sinks):
        tally.add_sink(layer, block, mass[:, :, block].T.tolist())
    others = mass[:, :, sinks:] if tally.by_token else mass[:, :, sinks:].sum((0, 1), keepdim=True)
    blocks = torch.arange(sinks, mass.shape[2]).expand(others.shape)
    tally.add(blocks.flatten().tolist(), others.flatten().tolist(), others.shape[2])
