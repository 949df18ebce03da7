"""A decoder layer of many positions on a CPU: products by torch, and all that lies between them as jobs of the team.

Between two products torch is asked for a dozen small steps, each of which reads and writes all rows, takes memory for
them and gives it back. For 512 rows that is a tenth of a layer where a processor multiplies fast; and what a kernel
does for one row in a decoded token it does for the rows of a prompt in the same way, to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache import Task, Tasks
from engine.attention.base import Attention
from engine.layer_tasks import Rooms, RowTasks, widths_of
from engine.many_rows import many
from engine.rounded import RoundedLinear, matrix_of
from engine.step import Step
from engine.usual import Parts, Product

ROOMS = ("q", "k", "v", "normed", "stream", "gate", "up")


class BroadLayer:
    """A usual layer, for any number of positions.

    Args:
        rooms: of the layers of its model, for as many rows as come
    """

    def __init__(self, parts: Parts, head_dim: int, rooms: Rooms) -> None:
        self._parts, self._head_dim, self._rooms = parts, head_dim, rooms
        self._widths = widths_of(parts)

    def run(self, x: Tensor, attention: Attention, step: Step) -> Tensor:
        """What the layer makes of x (1, positions, channels), contiguous."""
        parts, rows = self._parts, x.numel() // self._parts.width
        tasks = RowTasks(parts.dtype.itemsize, matrix_of(parts.q).dtype, rows)
        q, k, v, normed, stream, gate, up = (self._rooms.rows(name, rows, self._widths[name]) for name in ROOMS)
        do(tasks.norm(parts.before, x, normed, rows))
        for layer, to in ((parts.q, q), (parts.k, k), (parts.v, v)):
            multiply(layer, normed, to)
        of_heads = (parts.q_norm, q), (parts.k_norm, k)
        do(*(tasks.norm(norm, y, y, y.numel() // self._head_dim) for norm, y in of_heads if norm is not None))
        q, k, v = (y.view(rows, -1, self._head_dim) for y in (q, k, v))
        attended = attention(parts.number, q, k, v, step, parts.scaling, None).contiguous()
        multiply(parts.o, attended.view(rows, -1), normed)
        do(tasks.add(x, normed, stream), tasks.norm(parts.after, stream, normed, rows))
        multiply(parts.gate, normed, gate)
        multiply(parts.up, normed, up)
        do(tasks.gate(gate, up, gate))
        multiply(parts.down, gate, normed)
        output = torch.empty_like(x)
        do(tasks.add(stream, normed, output))
        return output


def multiply(layer: Product, x: Tensor, to: Tensor) -> None:
    """What a linear layer makes of x (rows, channels), to (rows, outputs)."""
    scales = layer.scales if isinstance(layer, RoundedLinear) else None
    many(x, matrix_of(layer), layer.bias, scales, to)


def do(*tasks: Task) -> None:
    """One after the other."""
    Tasks(tasks).do()
