"""Linear layers whose weights are kept in 8 bits, on a CPU: half the memory, and half of what a decoded token reads.

A weight is a whole number up to 127 times a scale of its row. Inputs are not rounded: products are those of the whole
numbers, in fp32, times the scale. What it costs in quality tells docs/decisions/0015-weights-in-eight-bits.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cache import zeros
from engine.linear import WideProduct
from engine.pairs import PairProduct

FINEST = 127
"""Steps of a scale, up and down."""
AT_ONCE = 1 << 16
"""Weights that are rounded together: what is widened for it stays in a near cache, and leaves no holes in memory."""
TINIEST = torch.finfo(torch.float32).tiny


class RoundedLinear(nn.Module):
    """A linear layer with rounded weights.

    Args:
        numbers: (outputs, channels) int8
        scales: (outputs,) fp32
        bias: (outputs,)
        dtype: of the weights that were rounded
    """

    def __init__(self, numbers: nn.Parameter, scales: Tensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.numbers, self.bias, self.dtype = numbers, bias, dtype
        self.scales: Tensor
        self.register_buffer("scales", scales)
        self.out_features, self.in_features = numbers.shape
        self._pairs = dtype == torch.bfloat16 and PairProduct.fits(numbers)
        self._product: PairProduct | WideProduct | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(…, channels) to (…, outputs) of the same type."""
        if self._product is None:
            self._product = (PairProduct if self._pairs else WideProduct)(self.numbers, self.bias, self.scales)
        return self._product(x)

    @property
    def weight(self) -> Tensor:
        """(outputs, channels) of the type before, made anew: for whoever asks a layer for it."""
        return (self.numbers * self.scales[:, None]).to(self.dtype)


class RoundedEmbedding(nn.Module):
    """A table of token vectors that is the output layer's matrix, too.

    Args:
        numbers: (tokens, channels) int8
        scales: (tokens,) fp32
        dtype: of the vectors
    """

    def __init__(self, numbers: nn.Parameter, scales: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.numbers, self.dtype = numbers, dtype
        self.scales: Tensor
        self.register_buffer("scales", scales)
        self.num_embeddings, self.embedding_dim = numbers.shape

    def forward(self, ids: Tensor) -> Tensor:
        """(…) to (…, channels)"""
        found = functional.embedding(ids, self.numbers).float() * functional.embedding(ids, self.scales[:, None])
        return found.to(self.dtype)

    @property
    def weight(self) -> Tensor:
        """(tokens, channels) of the type before, made anew."""
        return (self.numbers * self.scales[:, None]).to(self.dtype)


def matrix_of(layer: nn.Linear | RoundedLinear) -> Tensor:
    """(outputs, channels): the numbers that are in memory."""
    return layer.numbers if isinstance(layer, RoundedLinear) else layer.weight


def round_weights(model: nn.Module) -> None:
    """Round the weights of a model's linear layers on the CPU.

    Each old matrix is let go before the next one is rounded. An output layer that shares its matrix with the table of
    token vectors goes on sharing it.
    """
    tables = {id(module.weight) for module in model.modules() if type(module) is nn.Embedding}
    shared: dict[int, RoundedLinear] = {}
    for parent in model.modules():
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                made = rounded_layer(layer)
                setattr(parent, name, made)
                if id(layer.weight) in tables:
                    shared[id(layer.weight)] = made
    for parent in model.modules():
        for name, table in list(parent.named_children()):
            if type(table) is nn.Embedding and (output := shared.get(id(table.weight))) is not None:
                setattr(parent, name, RoundedEmbedding(output.numbers, output.scales, output.dtype))


def rounded_layer(layer: nn.Linear) -> RoundedLinear:
    numbers, scales = rounded(layer.weight.detach())
    return RoundedLinear(nn.Parameter(numbers, requires_grad=False), scales, layer.bias, layer.weight.dtype)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers int8 (outputs, channels) and scales fp32 (outputs,) that are nearest to weights."""
    numbers, scales = zeros(tuple(weight.shape), torch.int8), torch.empty(len(weight))
    piece = max(1, AT_ONCE // weight.shape[1])
    for start in range(0, len(weight), piece):
        mine = weight[start : start + piece].to(torch.float32, copy=True)
        scale = (torch.linalg.vector_norm(mine, torch.inf, dim=1) / FINEST).clamp_(min=TINIEST)
        numbers[start : start + piece] = mine.div_(scale[:, None]).round_()
        scales[start : start + piece] = scale
    return numbers, scales
