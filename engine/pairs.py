"""Products of a few rows of bf16 on a CPU, with weights of bf16 or in 8 bits.

Many rows are another matter (`many_rows`); for a few torch reads the weights at a third of the memory's bandwidth.
Few rows go through kernels, all threads at once, without Python in between: by instructions for bf16 where a processor
has them (AVX512-BF16: `pair_kernels`, `byte_kernels`), and by fp32 otherwise (`widening_kernels`).
"""

from __future__ import annotations

from ctypes import addressof, c_int64

import torch
from torch import Tensor

from cache import kernels, together
from engine.many_rows import many

FEW = 32
"""Up to so many rows the kernel is faster than torch."""
WIDTHS = {torch.bfloat16: 32, torch.int8: 64}
"""Channels must be a multiple of it, for weights of a type."""
FEATURES = {torch.bfloat16: ("avx512bf16",), torch.int8: ("avx512bf16", "avx512vbmi")}
"""What a processor must have for instructions to take such weights."""
Words = c_int64 * 14
"""Arguments of the kernel, and behind them a job of theirs."""
PIECE_BYTES = 1 << 16
"""Of a matrix, which a thread claims at once: pieces of its own part of it lie side by side."""
WHOLE_BYTES = 1 << 17
"""Less than that is not divided."""


def piece_of(*weights: Tensor) -> int:
    """Rows that a thread claims at once of a matrix, or of several of as many channels."""
    if sum(weight.nbytes for weight in weights) < WHOLE_BYTES:
        return sum(map(len, weights))
    return max(4, round(PIECE_BYTES / (weights[0].itemsize * weights[0].shape[1]) / 4) * 4)


def by_instructions(dtype: torch.dtype) -> bool:
    """Whether this machine multiplies bf16 with such weights by instructions for that."""
    return torch.cpu._is_avx512_bf16_supported() and all(map(kernels("lane").knows, FEATURES[dtype]))


def multiply_job(dtype: torch.dtype) -> int:
    """Address of the kernel for weights of this type, which `PairProduct.fits`: which one is decided here alone."""
    if not by_instructions(dtype):
        from engine import widening_kernels

        return widening_kernels.multiply_job(dtype)
    if dtype == torch.int8:
        from engine import byte_kernels

        return byte_kernels.multiply_job()
    from engine import pair_kernels

    return pair_kernels.multiply_job()


def ask_job(dtype: torch.dtype) -> int:
    """Address of what asks for the first rows that such a kernel reads."""
    from engine import asking_kernels

    return asking_kernels.ask_job(dtype)


class PairProduct:
    """What a linear layer gives for bf16.

    Args:
        weight: (outputs, channels) bf16 or int8, as `fits` says
        bias: (outputs,) bf16
        scales: (outputs,) fp32, of the products with weights of int8
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, scales: Tensor | None = None) -> None:
        self._weight, self._bias, self._scales = weight, bias, scales
        self._multiply = multiply_job(weight.dtype)
        self._outputs, self._channels = weight.shape
        self._piece = piece_of(weight)

    @staticmethod
    def fits(weight: Tensor) -> bool:
        """Whether there is a kernel for such weights."""
        return weight.dtype in WIDTHS and weight.shape[1] % WIDTHS[weight.dtype] == 0

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias, scales = self._weight, self._bias, self._scales
        rows = x.numel() // self._channels
        if rows > FEW or x.dtype != torch.bfloat16:
            return many(x, weight, bias, scales)
        x = x.contiguous()
        product = torch.empty(*x.shape[:-1], self._outputs, dtype=torch.bfloat16)
        words = Words(weight.data_ptr(), self._outputs, self._channels, x.data_ptr(), rows, product.data_ptr())
        words[6] = 0 if bias is None else bias.data_ptr()
        words[7] = 0 if scales is None else scales.data_ptr()
        words[8:] = [self._multiply, addressof(words), 0, self._outputs, self._piece, 0]
        together(addressof(words) + 64)
        return product
