"""Linear layers of bf16 weights on a CPU that has instructions for them (AVX512-BF16).

There torch multiplies many rows as fast as the CPU can, but reads the weights for a few at a third of the memory's
bandwidth. Few rows go through `pair_kernels`, with all threads and without a hand-over through Python.
"""

from __future__ import annotations

from ctypes import addressof, c_int64

import torch
from torch import Tensor, nn
from torch.nn import functional

from cache import together

FEW = 32
"""Up to so many rows the kernel is faster than torch."""
WIDTH = 32
"""Channels must be a multiple of it."""
Words = c_int64 * 12
"""Arguments of the kernel, and behind them a job of theirs."""
PIECE_BYTES = 1 << 17
"""Of the matrix, which a thread claims at once."""


def piece_of(weight: Tensor) -> int:
    """Rows of a matrix that a thread claims at once."""
    return max(4, PIECE_BYTES // (weight.itemsize * weight.shape[1]) // 4 * 4)


class PairProduct:
    """What stands for a linear layer's `forward`; for channels that are a multiple of 32."""

    def __init__(self, layer: nn.Linear) -> None:
        from engine import pair_kernels

        self._weight, self._bias = layer.weight, layer.bias
        self._multiply = pair_kernels.multiply_job()
        self._outputs, self._channels = layer.weight.shape
        self._piece = piece_of(layer.weight)

    @staticmethod
    def fits(weight: Tensor) -> bool:
        """Whether there is a kernel for such weights, and this machine can run it."""
        if weight.dtype != torch.bfloat16 or weight.shape[1] % WIDTH or not torch.cpu._is_avx512_bf16_supported():
            return False
        from llvmlite import binding

        return bool(binding.get_host_cpu_features().get("avx512bf16"))

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self._weight, self._bias
        rows = x.numel() // self._channels
        if rows > FEW or x.dtype != torch.bfloat16:
            return functional.linear(x, weight, bias)
        x = x.contiguous()
        product = torch.empty(*x.shape[:-1], self._outputs, dtype=torch.bfloat16)
        words = Words(weight.data_ptr(), self._outputs, self._channels, x.data_ptr(), rows, product.data_ptr())
        words[6] = 0 if bias is None else bias.data_ptr()
        words[7:] = [self._multiply, addressof(words), 0, self._outputs, self._piece]
        together(addressof(words) + 56)
        return product
