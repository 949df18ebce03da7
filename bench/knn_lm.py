"""kNN-LM over a document's own past (Khandelwal et al. 2020, https://arxiv.org/abs/1911.00172), for `bench.perplexity`.

The store holds a pair for every token that lies before the model's window: the final hidden state that predicts
it, and the token. A query takes its nearest pairs by squared distance; their softmax over minus
distance / temperature is a distribution over their tokens, of which `share` is mixed into the model's own.
Both numbers are tuned on text that is not evaluated.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.scoring import PlainScorer

SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
TEMPERATURES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
NEIGHBOURS = 1024
"""As many as the paper takes."""


@dataclass(frozen=True)
class Mixing:
    """Share of the neighbours' distribution, and the temperature of its softmax over squared distances."""

    share: float
    temperature: float


@dataclass(frozen=True)
class Neighbours:
    """Nearest pairs of each state.

    Attributes:
        distances: squared (states, k), inf where the store held fewer
        hits: whether the pair's token is the one that follows (states, k)
    """

    distances: Tensor
    hits: Tensor

    def chance(self, temperature: float) -> Tensor:
        """Probability (states,) of the token that follows; NaN where the store was empty."""
        return ((-self.distances / temperature).softmax(-1) * self.hits).sum(-1)


def find_neighbours(states: Tensor, tokens: list[int], starts: list[int], window: int, count: int) -> Neighbours:
    """The nearest pairs of states (n, width), each among the pairs whose token lies before its window.

    Args:
        tokens: state i predicts tokens[i + 1]
        starts: where the windows begin; each state belongs to the first that holds it
        window: states of a window
        count: neighbours to keep
    """
    total, targets = len(states), torch.tensor(tokens[1:])
    distances = torch.full((total, count), torch.inf)
    hits = torch.zeros(total, count, dtype=torch.bool)
    squares = states.square().sum(-1)
    done = min(window, total)  # the first window has nothing before it
    for start in starts[1:]:
        end, stored = min(start + window, total), start - 1  # pair j holds token j + 1, which lies before `start`
        queries = slice(done, end)
        distance = squares[queries, None] + squares[:stored] - 2 * states[queries] @ states[:stored].mT
        best = distance.clamp_(min=0).topk(min(count, max(stored, 0)), largest=False)
        kept = best.indices.shape[1]
        distances[queries, :kept] = best.values
        hits[queries, :kept] = targets[best.indices] == targets[queries, None]
        done = end
    return Neighbours(distances, hits)


def mix(base: Tensor, neighbours: Neighbours, mixing: Mixing) -> Tensor:
    """Losses (states,) of the mixture; the model's own (states,) where the store was empty."""
    mixed = (1 - mixing.share) * (-base).exp() + mixing.share * neighbours.chance(mixing.temperature)
    return torch.where(neighbours.distances[:, 0].isinf(), base, -mixed.log())


class KnnScorer:
    """The plain model in sliding windows, mixed with its own document's past.

    Args:
        plain: the model in windows
        mixings: by length of the text, as `tune` found them
    """

    def __init__(self, plain: PlainScorer, window: int, mixings: dict[int, Mixing]) -> None:
        self._plain, self._window, self._mixings = plain, window, mixings

    def losses(self, tokens: list[int]) -> Tensor:
        base, neighbours = evidence(self._plain, self._window, tokens)
        return mix(base, neighbours, self._mixings[len(tokens)])


@torch.inference_mode()
def evidence(plain: PlainScorer, window: int, tokens: list[int]) -> tuple[Tensor, Neighbours]:
    """The model's own losses of a text, and the neighbours of its states."""
    states = plain.states(tokens)
    neighbours = find_neighbours(states, tokens, plain.starts(len(states)), window, NEIGHBOURS)
    return plain.state_losses(states, tokens), neighbours


def tune(plain: PlainScorer, window: int, texts: list[list[int]]) -> Mixing:
    """The share and temperature with the lowest mean loss on texts that are not evaluated."""
    found = [evidence(plain, window, text) for text in texts]
    grid = [Mixing(share, heat) for share, heat in itertools.product(SHARES, TEMPERATURES)]
    return min(grid, key=lambda mixing: sum(float(mix(base, near, mixing).sum()) for base, near in found))
