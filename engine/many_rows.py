"""Products of many rows with a matrix of 16 or 8 bits on a CPU.

Where instructions for their type are faster than those for fp32, torch multiplies rows of 16 bits as fast as the CPU
can, and a matrix of 8 bits becomes such a one piece by piece. Without such instructions torch is four times as fast
with fp32, and with AVX512-BF16 of Intel's, which makes no more products at once, 1.8 times: there a piece becomes fp32.
All sum in fp32.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

PIECE_BYTES = 8 << 20
"""Of a matrix that is widened to fp32 at once: what a processor's cache holds."""
SHORT_PIECE_BYTES = 4 << 20
"""Of a matrix of 8 bits that becomes one of 16."""


def native(dtype: torch.dtype) -> bool:
    """Whether this machine has fast instructions for matrices of this type, so that torch multiplies many rows fast."""
    if dtype == torch.bfloat16:
        return torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and amd())
    return dtype == torch.float16 and torch.cpu._is_amx_fp16_supported()


@functools.cache
def amd() -> bool:
    """Whether this is a Zen, whose instructions for bf16 make twice the products of those for fp32."""
    from llvmlite import binding

    return str(binding.get_host_cpu_name()).startswith("znver")


def many(x: Tensor, weight: Tensor, bias: Tensor | None, scales: Tensor | None, to: Tensor | None = None) -> Tensor:
    """x (…, channels) times weights (outputs, channels), times scales: (…, outputs), of the type of x.

    Args:
        to: where it goes, if that is known
    """
    plain = scales is None and (native(x.dtype) or x.dtype == weight.dtype == torch.float32)
    if plain and to is None:
        return functional.linear(x, weight, bias)
    product = x.new_empty(*x.shape[:-1], len(weight)) if to is None else to
    rows, products = x.reshape(-1, x.shape[-1]), product.view(-1, len(weight))
    if plain:
        multiply_to(products, rows, weight, bias)
    elif scales is not None and native(x.dtype):
        by_short_pieces(rows, weight, bias, scales, products)
    else:
        by_wide_pieces(rows, weight, bias, scales, products)
    return product


def multiply_to(to: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """`functional.linear` of x (rows, channels), to a place that is there."""
    if bias is None:
        torch.mm(x, weight.T, out=to)
    else:
        torch.addmm(bias, x, weight.T, out=to)


def by_wide_pieces(x: Tensor, weight: Tensor, bias: Tensor | None, scales: Tensor | None, to: Tensor) -> None:
    """`many` of x (rows, channels), for which one piece of the matrix after the other becomes fp32."""
    rows, piece = x.float(), max(1, PIECE_BYTES // (4 * weight.shape[1]))
    for start in range(0, len(weight), piece):
        mine = slice(start, start + piece)
        some = functional.linear(rows, weight[mine].float())
        if scales is not None:
            some *= scales[mine]
        if bias is not None:
            some += bias[mine]
        to[:, mine] = some


def by_short_pieces(x: Tensor, weight: Tensor, bias: Tensor | None, scales: Tensor, to: Tensor) -> None:
    """The same of a matrix of 8 bits, for which one piece after the other becomes numbers of the type of x."""
    piece = max(1, SHORT_PIECE_BYTES // (x.itemsize * weight.shape[1]))
    for start in range(0, len(weight), piece):
        mine = slice(start, start + piece)
        torch.mul(functional.linear(x, weight[mine].to(x.dtype)), scales[mine], out=to[:, mine])
    if bias is not None:
        to += bias
