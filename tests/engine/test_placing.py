"""Weights move into large pages, and nothing else about a model changes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from cache import large_pages
from engine.placing import ALIGNED, settle

MODEL = {"table": nn.Embedding(700, 1000), "norm": nn.LayerNorm(3), "flat": nn.Linear(1000, 300)}


def tied() -> nn.ModuleDict:
    model = nn.ModuleDict(MODEL | {"output": nn.Linear(1000, 700, bias=False)})
    model["output"].weight = model["table"].weight
    return model


def test_values_and_ties_stay_and_places_do_not_overlap() -> None:
    model = tied()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    settle(model)
    assert model["output"].weight is model["table"].weight
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    places = sorted((weight.data_ptr(), weight.nbytes) for weight in model.parameters())
    assert all(start + size <= after for (start, size), (after, _) in itertools.pairwise(places))


@pytest.mark.skipif(not large_pages(), reason="this system has no large pages")
def test_weights_lie_one_after_the_other() -> None:
    model = tied()
    settle(model)
    places = [(weight.data_ptr(), weight.nbytes) for weight in model.parameters()]
    assert not any(place % ALIGNED for place, _ in places)
    assert all(after - (start + size) < ALIGNED for (start, size), (after, _) in itertools.pairwise(places))
    assert not places[0][0] % (2 << 20)


def test_in_inference_mode_too() -> None:
    with torch.inference_mode():
        layer = nn.Linear(8, 8)
        before = layer.weight.clone()
        settle(layer)
        assert torch.equal(layer.weight, before)
