"""The grouped softmax of landmark attention, piece by piece: its memory grows with the block, not with length².

Queries are taken in chunks of a few blocks. A chunk scores its near blocks, the landmarks of all others, and the
few blocks that each head fetches (`training/reader.py`); a backward pass computes the chunk again. So no
(slots, slots) tensor ever exists, and what is kept between the passes grows with the length only.

Letters in shapes are those of `training/reader.py`; T are the slots of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from training.reader import Blockwise, Chunk, Read, Reader

NAME = "cairn_blockwise_training"


class _Attend(torch.autograd.Function):
    """Chunk by chunk; what is kept for the backward pass are the inputs and which blocks were read."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, keys: Tensor, values: Tensor, reader: Reader) -> Tensor:
        output, reads = q.new_empty(*q.shape[:-1], values.shape[-1]), []
        pools = Pools(keys, values)
        for chunk in reader.chunks(q.shape[2], q.device):
            queries, pooled = q[:, :, chunk.slots], pools.of(chunk)
            read = reader.choose(chunk, queries, pooled[0])
            far = [] if read is None else [reader.taken(chunk, read, pool) for pool in pooled]
            near = [x[:, :, chunk.first : chunk.last] for x in (keys, values)]
            output[:, :, chunk.slots] = reader.attend(chunk, read, queries, near, far)
            reads.append(read)
        kept = [x for read in reads if read is not None for x in (read.blocks, read.allowed)]
        ctx.save_for_backward(q, keys, values, *kept)
        ctx.reader, ctx.empty = reader, [read is None for read in reads]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, keys, values, *kept = ctx.saved_tensors
        reader: Reader = ctx.reader
        pools, saved = Pools(keys, values), iter(kept)
        grad_q, grads = torch.empty_like(q), Gradients(torch.zeros_like(keys), torch.zeros_like(values))
        for chunk, empty in zip(reader.chunks(q.shape[2], q.device), ctx.empty, strict=True):
            read = None if empty else Read(next(saved), next(saved))
            far = [] if read is None else [reader.taken(chunk, read, pool) for pool in pools.of(chunk)]
            near = [x[:, :, chunk.first : chunk.last] for x in (keys, values)]
            leaves = [x.detach().requires_grad_() for x in (q[:, :, chunk.slots], *near, *far)]
            with torch.enable_grad():
                output = reader.attend(chunk, read, leaves[0], leaves[1:3], leaves[3:])
            found = torch.autograd.grad(output, leaves, grad[:, :, chunk.slots])
            grad_q[:, :, chunk.slots] = found[0]
            for whole, part in zip(grads.own, found[1:3], strict=True):
                whole[:, :, chunk.first : chunk.last].add_(part)
            if read is not None:
                for pool, part in zip(grads.of(chunk), found[3:], strict=True):
                    reader.give_back(chunk, read, part, pool)
        grad_keys, grad_values = grads.total()
        return grad_q, grad_keys, grad_values, None


class Pools:
    """Keys and values (R, H, N, B, D) as the pools that chunks look into."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.own = [keys, values]
        self._crowd: tuple[Chunk, list[Tensor]] | None = None

    def of(self, chunk: Chunk) -> list[Tensor]:
        """Both (P, H, M, B, D); for a crowd they are a copy, made once."""
        if not chunk.crowd:
            return self.own
        if self._crowd is None:
            self._crowd = chunk, [self.pooled(chunk, x) for x in self.own]
        return self._crowd[1]

    def pooled(self, chunk: Chunk, x: Tensor) -> Tensor:
        return chunk.pool(x).contiguous()


class Gradients(Pools):
    """What chunks add to the gradients of keys and values (R, H, N, B, D); a crowd adds to a pool of its own."""

    def pooled(self, chunk: Chunk, x: Tensor) -> Tensor:
        return torch.zeros_like(chunk.pool(x), memory_format=torch.contiguous_format)

    def total(self) -> list[Tensor]:
        """Both, of all chunks."""
        if self._crowd is None:
            return self.own
        chunk, pooled = self._crowd
        return [own + chunk.unpool(pool, own.shape[0]) for own, pool in zip(self.own, pooled, strict=True)]


def blockwise_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    blockwise: Blockwise,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: q (R, H * G, T, D), k and v (R, H, T, D), all unrotated; T in whole blocks.

    Scores are computed in fp32 (or fp64) whatever the inputs are, as they are when the model is served.
    """
    assert isinstance(module.layer_idx, int)
    reader = blockwise.reader(module.layer_idx, softcap)
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        q = reader.scaled(query.to(dtype) * scaling)
        q = q.unflatten(1, (blockwise.kv_heads, -1)).transpose(2, 3)  # (R, H, T, G, D)
        keys, values = (x.to(dtype).unflatten(2, (-1, reader.size)) for x in (key, value))  # (R, H, N, B, D)
        if repeats := blockwise.kv_heads // key.shape[1] - 1:
            keys, values = (x.repeat_interleave(repeats + 1, dim=1) for x in (keys, values))
        keys = reader.geometry.rotation(keys, torch.arange(reader.size, device=key.device)).contiguous()
        output = _Attend.apply(q, keys, values.contiguous(), reader)  # type: ignore[no-untyped-call] # (R, H, T, G, D)
    return output.permute(0, 2, 1, 3, 4).flatten(2, 3).contiguous().to(query.dtype), None


def register() -> None:
    """Make the attention function known to transformers under `NAME`."""
    AttentionInterface.register(NAME, blockwise_attention)
