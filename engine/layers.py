"""Finds a model's layers of the usual kind, and lets them go the fast way (`quick`); all others are left as they are.

Which layers are of that kind, and which follow each other, is seen, not believed (`usual`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from engine.layer_tasks import rooms_of
from engine.quick import QuickLayer, Stretch
from engine.usual import Parts, Seen, given_out, louder, observed, pretended_step

LOUD = 64.0
"""A layer is looked at twice, the second time with norms that give so many times as much: what clamps shows itself then
only. A power of two, so that weights become what they were."""


def quicken_layers(model: nn.Module, kv_heads: int, head_dim: int) -> Callable[[], None]:
    """Let a model's usual layers go the fast way; the function that is returned undoes it.

    Weights that a layer gets afterwards, and hooks or adapters within it, are not seen where it goes that way.

    Args:
        kv_heads, head_dim: as the cache has them; a layer that has others is left alone
    """
    found = ((layer, Parts.of(layer)) for layer in model.modules())
    fitting = {layer: parts for layer, parts in found if parts is not None and parts.fits(kv_heads, head_dim)}
    if not fitting:
        return lambda: None
    rooms, step = rooms_of(list(fitting.values())), pretended_step(kv_heads, head_dim)
    quick = {layer: QuickLayer(layer, parts, head_dim, rooms) for layer, parts in fitting.items()}
    for times in (1.0, LOUD):
        with louder(list(fitting.values()), times):
            seen = observed(model, list(quick), step)
            quick = {layer: mine for layer, mine in quick.items() if layer in seen and mine.gives(seen[layer])}
    for layer, mine in quick.items():
        layer.forward = mine
    stretch(model, stretches_of(quick, seen), step)

    def undo() -> None:
        for layer in quick:
            vars(layer).pop("forward", None)

    return undo


def stretches_of(quick: Mapping[nn.Module, QuickLayer], seen: Mapping[nn.Module, Seen]) -> list[list[QuickLayer]]:
    """Layers of which each got what the one before it gave, in the order in which they were seen."""
    found: list[list[QuickLayer]] = []
    before = None
    for layer, here in seen.items():
        if layer not in quick:
            continue
        if before is None or not torch.equal(before.output, here.hidden):
            found.append([])
        found[-1].append(quick[layer])
        before = here
    return found


def stretch(model: nn.Module, found: Sequence[Sequence[QuickLayer]], step: object) -> None:
    """Let layers go through a step together, unless somebody else reads what they give each other."""
    expected = given_out(model, step)
    for layers in found:
        mine = Stretch(layers)
        for layer in layers:
            layer.stretch = mine
    if not torch.equal(given_out(model, step), expected):
        for layer in itertools.chain(*found):
            layer.stretch = None
