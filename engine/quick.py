"""A decoder layer of a few positions on a CPU, as lists of jobs from one attention to the next.

For one token the weights of a layer go through all caches of the processor, and push out of them what it takes to
call torch from Python. Some twenty such calls between two products then cost more than twice what they cost by
themselves: a seventh of a token's time for a model of a billion weights. So where a layer is of the usual kind (norm,
attention, norm, gated SiLU) all of it but attention becomes two lists of jobs for the team.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.attention.base import Attention
from engine.broad_layer import BroadLayer
from engine.layer_tasks import LayerTasks, Rooms
from engine.pairs import FEW
from engine.step import Step
from engine.usual import Parts, Seen, alike

NORM_INPUT, PRODUCT_INPUT, ADD_ONE, ADD_TO = 0, 3, 0, 2
"""Words of jobs that change from call to call."""
OUT, RESIDUAL, LAST = 0, 1, 7
"""Places of such jobs behind attention."""


class QuickLayer:
    """What stands for a layer's `forward`.

    Args:
        rooms: of the layers of its model, for FEW rows
        broad: what goes for more positions
    """

    def __init__(self, layer: Any, parts: Parts, head_dim: int, rooms: Rooms, broad: BroadLayer) -> None:
        self._whole: Callable[..., Tensor] = layer.forward
        self.layer, self.parts, self.head_dim, self.rooms, self._broad = layer, parts, head_dim, rooms, broad
        self._mine = threading.local()

    def __call__(self, hidden_states: Tensor, **told: Any) -> Tensor:
        """(1, positions, channels) to the same."""
        x = hidden_states
        mine = "cairn_attention" in told  # else it is trained, or compared
        if not mine or x.dtype != self.parts.dtype or not x.is_contiguous():
            return self._whole(hidden_states, **told)
        run = self.run if x.numel() <= FEW * self.parts.width else self._broad.run
        return run(x, told["cairn_attention"], told["cairn_step"])

    def run(self, x: Tensor, attention: Attention, step: Step) -> Tensor:
        """What the layer makes of x (1, positions, channels), contiguous, as many as FEW at most."""
        tasks = self._tasks(x.numel() // self.parts.width)
        tasks.before.put(0, NORM_INPUT, x.data_ptr())
        tasks.before.do()
        number, scaling = self.parts.number, self.parts.scaling
        attended = attention(number, tasks.q, tasks.k, tasks.v, step, scaling, None).contiguous()
        output = torch.empty_like(x)
        tasks.after.put(OUT, PRODUCT_INPUT, attended.data_ptr())
        tasks.after.put(RESIDUAL, ADD_ONE, x.data_ptr())
        tasks.after.put(LAST, ADD_TO, output.data_ptr())
        tasks.after.do()
        return output

    def gives(self, seen: Seen) -> bool:
        """Whether it gives what its layer gave."""
        return alike(self(seen.hidden, **seen.told), seen)

    def _tasks(self, rows: int) -> LayerTasks:
        known: dict[int, LayerTasks] = vars(self._mine).setdefault("tasks", {})
        if rows not in known:
            known[rows] = LayerTasks(self.parts, self.head_dim, self.rooms, rows)
        return known[rows]
