"""Decoder layers of a few positions on a CPU, as lists of jobs from one attention to the next, or through all layers.

For one token the weights of a layer go through all caches of the processor, and push out of them what it takes to
call torch from Python, or Python itself: what is asked between two layers costs more than twice what it costs by
itself. So a usual layer (`usual`) is a list of jobs before attention and one after it. Where attention tells its own
jobs beforehand, layers that follow each other become one list, and Python waits until it is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache import together
from engine.attention.base import Attention, ListedAttention
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
        rooms: of the layers of its model

    Attributes:
        stretch: of the layers that it belongs to, if it does not work alone
    """

    def __init__(self, layer: Any, parts: Parts, head_dim: int, rooms: Rooms) -> None:
        self._whole: Callable[..., Tensor] = layer.forward
        self.layer, self.parts, self.head_dim, self.rooms = layer, parts, head_dim, rooms
        self.stretch: Stretch | None = None
        self._mine = threading.local()

    def __call__(self, hidden_states: Tensor, **told: Any) -> Tensor:
        """(1, positions, channels) to the same."""
        rows, x = hidden_states.numel() // self.parts.width, hidden_states
        mine = "cairn_attention" in told  # else it is trained, or compared
        if not mine or rows > FEW or x.dtype != self.parts.dtype or not x.is_contiguous():
            return self._whole(hidden_states, **told)
        if self.stretch is not None and self.stretch.whole:
            return self.stretch.through(self, x, told["cairn_attention"], told["cairn_step"])
        return self.alone(x, told["cairn_attention"], told["cairn_step"])

    def alone(self, x: Tensor, attention: Attention, step: Step) -> Tensor:
        """What the layer makes of x."""
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
        tasks: LayerTasks | None = getattr(self._mine, "tasks", None)
        if tasks is None or tasks.rows != rows:
            tasks = self._mine.tasks = LayerTasks(self.parts, self.head_dim, self.rooms, rows)
        return tasks


class Stretch:
    """Layers that follow each other: the first one does the work of all, and the others hand on what they get."""

    def __init__(self, layers: Sequence[QuickLayer]) -> None:
        self._layers = layers
        self._scalings = {each.parts.number: each.parts.scaling for each in layers}
        self._mine = threading.local()

    @property
    def whole(self) -> bool:
        """Whether nobody looks at what single layers give."""
        return not any(each.layer._forward_hooks or each.layer._forward_pre_hooks for each in self._layers)

    def through(self, layer: QuickLayer, x: Tensor, attention: Attention, step: Step) -> Tensor:
        """What one of the layers gives."""
        if layer is self._layers[0]:
            output = self._at_once(x, attention, step) if isinstance(attention, ListedAttention) else None
            step.shared[self] = output = self._one_by_one(x, attention, step) if output is None else output
            return output
        assert step.shared[self] is x, "something else came between two layers"
        return x

    def _one_by_one(self, x: Tensor, attention: Attention, step: Step) -> Tensor:
        for layer in self._layers:
            x = layer.alone(x, attention, step)
        return x

    def _at_once(self, x: Tensor, attention: ListedAttention, step: Step) -> Tensor | None:
        """As one list of jobs, if attention has one."""
        tasks = self._tasks(x.numel() // self._layers[0].parts.width)
        first = tasks[0]
        listed = attention.listed(self._scalings, first.q, first.k, first.v, first.attended, step)
        if listed is None:
            return None
        first.given.copy_(x[0])
        each = zip(tasks, listed.jobs, strict=True)
        jobs = np.concatenate([part for mine, jobs in each for part in (mine.before.jobs[0], jobs, mine.after.jobs[0])])
        together(jobs.ctypes.data, len(jobs))
        listed.done()
        return first.given.clone()[None]

    def _tasks(self, rows: int) -> list[LayerTasks]:
        """Of all layers; the rooms that they work in are the same."""
        tasks: list[LayerTasks] | None = getattr(self._mine, "tasks", None)
        if tasks is None or tasks[0].rows != rows:
            made = [LayerTasks(each.parts, each.head_dim, each.rooms, rows) for each in self._layers]
            tasks = self._mine.tasks = made
        return tasks
