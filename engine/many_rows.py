"""Products of many rows with a matrix of 16 or 8 bits on a CPU.

With instructions for their type torch multiplies rows of 16 bits as fast as the CPU can, and a matrix of 8 bits becomes
such a one piece by piece. Without, torch is four times as fast with fp32, so there a piece becomes fp32. All sum in
fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PIECE_BYTES = 8 << 20
"""Of a matrix that is widened to fp32 at once: what a processor's cache holds."""
SHORT_PIECE_BYTES = 4 << 20
"""Of a matrix of 8 bits that becomes one of 16."""


def native(dtype: torch.dtype) -> bool:
    """Whether this machine has instructions for matrices of this type, so that torch multiplies many rows fast."""
    if dtype == torch.bfloat16:
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return dtype == torch.float16 and torch.cpu._is_amx_fp16_supported()


def many(x: Tensor, weight: Tensor, bias: Tensor | None, scales: Tensor | None) -> Tensor:
    """x (…, channels) times weights (outputs, channels), times scales: (…, outputs), of the type of x."""
    if not native(x.dtype):
        return by_wide_pieces(x, weight, bias, scales)
    return functional.linear(x, weight, bias) if scales is None else by_short_pieces(x, weight, bias, scales)


def by_wide_pieces(x: Tensor, weight: Tensor, bias: Tensor | None, scales: Tensor | None) -> Tensor:
    """`many`, for which one piece of the matrix after the other becomes fp32."""
    rows = x.reshape(-1, x.shape[-1]).float()
    product = torch.empty(len(rows), len(weight), dtype=x.dtype)
    piece = max(1, PIECE_BYTES // (4 * weight.shape[1]))
    for start in range(0, len(weight), piece):
        mine = slice(start, start + piece)
        some = functional.linear(rows, weight[mine].float())
        if scales is not None:
            some *= scales[mine]
        if bias is not None:
            some += bias[mine]
        product[:, mine] = some
    return product.view(*x.shape[:-1], -1)


def by_short_pieces(x: Tensor, weight: Tensor, bias: Tensor | None, scales: Tensor) -> Tensor:
    """`many`, for which one piece of a matrix of 8 bits after the other becomes numbers of the type of x."""
    rows = x.reshape(-1, x.shape[-1])
    product = torch.empty(len(rows), len(weight), dtype=x.dtype)
    piece = max(1, SHORT_PIECE_BYTES // (x.itemsize * weight.shape[1]))
    for start in range(0, len(weight), piece):
        mine = slice(start, start + piece)
        torch.mul(functional.linear(rows, weight[mine].to(x.dtype)), scales[mine], out=product[:, mine])
    if bias is not None:
        product += bias
    return product.view(*x.shape[:-1], -1)
