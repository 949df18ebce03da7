"""Finds a model's layers of the usual kind, and lets them go the fast way (`quick`); all others are left as they are.

Which layers are of that kind is seen, not believed (`usual`). Where all are, the model as a whole goes the fast way if
it gives the same (`whole`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from engine.broad_layer import BroadLayer
from engine.layer_tasks import rooms_of
from engine.pairs import FEW
from engine.quick import QuickLayer
from engine.usual import Ends, Parts, Seen, alike, given_out, louder, observed, pretended_step
from engine.whole import QuickModel

LOUD = 64.0
"""All is looked at twice, the second time with norms that give so many times as much: what clamps shows itself then
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
    rooms, broad = (rooms_of(list(fitting.values()), rows) for rows in (FEW, 0))
    step = pretended_step(kv_heads, head_dim)
    quick = {
        layer: QuickLayer(layer, parts, head_dim, rooms, BroadLayer(parts, head_dim, broad))
        for layer, parts in fitting.items()
    }
    for times in (1.0, LOUD):
        with louder([norm for parts in fitting.values() for norm in parts.norms], times):
            seen = observed(model, list(quick), step)
            quick = {layer: mine for layer, mine in quick.items() if layer in seen and mine.gives(seen[layer])}
    for layer, mine in quick.items():
        layer.forward = mine
    quicken_whole(model, quick, step)

    def undo() -> None:
        for module in (model, *quick):
            vars(module).pop("forward", None)

    return undo


def quicken_whole(model: nn.Module, quick: Mapping[nn.Module, QuickLayer], step: object) -> None:
    """Let a model go the fast way from tokens to logits, if that is what it does itself."""
    layers = sorted(quick.values(), key=lambda each: each.parts.number)
    ends = Ends.of(model, quick)
    if ends is None or not layers or not ends.fits(layers[0].parts):
        return
    whole = QuickModel(model, ends, layers)
    norms = [ends.norm, *(norm for each in layers for norm in each.parts.norms)]
    for times in (1.0, LOUD):
        with louder(norms, times):
            expected = given_out(model, step)
            seen = Seen(torch.zeros_like(expected), {}, expected)
            if not alike(given_out(whole.run, step), seen):
                return
    model.forward = whole
