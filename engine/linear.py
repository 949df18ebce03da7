"""Linear layers of 16-bit weights on a CPU.

Without instructions for their type torch multiplies matrices of 16 bits at a quarter of the rate of fp32 ones, and with
or without reads them for a few rows at a third to a half of the memory's bandwidth. bf16 goes through `pairs`. What
else is slow in torch goes through a kernel that widens weights on the way (`linear_kernels`), and for many rows through
fp32 products of one piece of the matrix after the other (`many_rows`). All sum in fp32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cache import over_heads
from engine.many_rows import by_wide_pieces, native
from engine.pairs import PairProduct

FEW = 16
"""Up to so many rows the kernel is faster than widening the matrix."""
LANES = 16
SHORT = (torch.bfloat16, torch.float16)
SEVERAL = 8
"""For more rows than so many arithmetic takes longer than reading the matrix."""


def quicken(model: nn.Module) -> Callable[[], None]:
    """Let a model's linear layers on the CPU go the fast way; the function that is returned undoes it."""
    changed = []
    for module in model.modules():
        if type(module) is nn.Linear and (product := product_for(module)) is not None:
            module.forward = product  # type: ignore[method-assign,assignment]
            changed.append(module)

    def undo() -> None:
        for module in changed:
            del module.forward

    return undo


def product_for(layer: nn.Linear) -> Callable[[Tensor], Tensor] | None:
    """What is faster than the layer's own `forward` on this machine, if anything is."""
    weight = layer.weight
    if weight.device.type != "cpu" or weight.dtype not in SHORT or not weight.is_contiguous():
        return None
    if PairProduct.fits(weight):
        return PairProduct(weight, layer.bias)
    return None if native(weight.dtype) or weight.shape[1] % LANES else WideProduct(weight, layer.bias)


class WideProduct:
    """What a linear layer gives whose weights are widened to fp32.

    Args:
        weight: (outputs, channels) bf16, fp16 or int8
        bias: (outputs,)
        scales: (outputs,) fp32, of the products with weights of int8
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, scales: Tensor | None = None) -> None:
        from engine import linear_kernels

        self._weight, self._bias, self._scales = weight, bias, scales
        self._kernels = linear_kernels
        warm_up(weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        weight, channels = self._weight, x.shape[-1]
        if x.numel() > FEW * channels or channels % LANES:
            return self._many(x)
        rows = x.reshape(-1, channels).float()
        product = self._few(rows, weight) if len(rows) <= SEVERAL else self._several(rows, weight)
        if self._scales is not None:
            product *= self._scales
        if self._bias is not None:
            product += self._bias
        return product.to(x.dtype).view(*x.shape[:-1], -1)

    def _many(self, x: Tensor) -> Tensor:
        weight, product = self._weight, x.new_empty(*x.shape[:-1], len(self._weight))
        rows, products = x.reshape(-1, x.shape[-1]), product.view(-1, len(weight))
        by_wide_pieces(rows, weight, self._bias, self._scales, products)
        return product

    def _few(self, rows: Tensor, weight: Tensor) -> Tensor:
        rows, product = rows.contiguous(), torch.empty(len(rows), len(weight))
        arrays = (bits(weight), rows.data_ptr(), 4 * rows.shape[1])
        to, to_apart = product.data_ptr(), 4 * len(weight)

        def work(some: slice) -> None:
            self._kernels.multiply(*arrays, to + 4 * some.start, to_apart, len(rows), some.start, some.stop)

        over_heads(work, len(weight), rows.shape[1] // 64)
        return product

    def _several(self, rows: Tensor, weight: Tensor) -> Tensor:
        columns, product = torch.zeros(rows.shape[1], FEW), torch.empty(len(weight), FEW)
        columns[:, : len(rows)] = rows.T
        arrays = (bits(weight), columns.numpy(), product.numpy())

        def work(some: slice) -> None:
            self._kernels.multiply_columns(*arrays, some.start, some.stop)

        over_heads(work, len(weight), rows.shape[1] // 16)
        return product[:, : len(rows)].T


@functools.cache
def warm_up(dtype: torch.dtype) -> None:
    """Compile now, or load what an earlier start compiled, rather than in somebody's first request."""
    from engine import linear_kernels

    weights, columns = bits(torch.zeros(1, LANES, dtype=dtype)), np.zeros((LANES, FEW), np.float32)
    linear_kernels.multiply(weights, *[0] * 7)
    linear_kernels.multiply_columns(weights, columns, columns[:1], 0, 0)


def bits(weight: Tensor) -> NDArray[Any]:
    """A matrix of weights of 16 or 8 bits as kernels take it."""
    if weight.dtype == torch.int8:
        return weight.detach().numpy()
    return weight.detach().view(torch.uint16 if weight.dtype == torch.bfloat16 else torch.int16).numpy()
