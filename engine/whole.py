"""A whole model of usual layers for a few positions on a CPU: from tokens to logits without the model's own `forward`.

Between two layers even Python alone is slow, for the weights have pushed it out of all caches. So where attention tells
its jobs beforehand all layers and what follows them are one list of jobs, and Python waits until it is done. Otherwise
one layer comes after the other.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from cache import together
from engine.attention.base import Attention, Jobs
from engine.layer_tasks import EndTasks, LayerTasks
from engine.pairs import FEW
from engine.quick import QuickLayer
from engine.step import Step
from engine.usual import Ends

KNOWN = {"input_ids", "position_ids", "use_cache", "logits_to_keep", "cairn_attention", "cairn_step"}
"""What it can be asked with."""


@dataclass(frozen=True)
class Output:
    """What comes out: logits (1, rows, vocabulary)."""

    logits: Tensor


class Laid:
    """Tasks for so many rows, on one thread; the rooms that they work in are the same.

    Attributes:
        rows: as many
        layers: of each what it does
        end: what follows them, for the same rows
    """

    def __init__(self, layers: list[LayerTasks], end: EndTasks) -> None:
        self.rows, self.layers, self.end = end.rows, layers, end
        self._attention: list[Jobs] = []
        self._program: Jobs = np.empty((0, 0), np.int64)

    def do_layers(self, attention: list[Jobs], *, end: bool) -> None:
        """All layers with these jobs of theirs in attention, and what follows them if that is wanted."""
        if attention is not self._attention:  # they come again step after step
            each = zip(self.layers, attention, strict=True)
            jobs = [part for mine, its in each for part in (mine.before.jobs[0], its, mine.after.jobs[0])]
            self._program, self._attention = np.concatenate((*jobs, self.end.tasks.jobs[0])), attention
        count = len(self._program) - (0 if end else len(self.end.tasks.jobs[0]))
        together(self._program.ctypes.data, count)


class QuickModel:
    """What stands for a model's `forward`.

    Args:
        ends: what is before its layers and behind them
        layers: all of them, in their order
    """

    def __init__(self, model: nn.Module, ends: Ends, layers: Sequence[QuickLayer]) -> None:
        self._whole: Callable[..., Any] = model.forward
        functools.update_wrapper(self, model.forward)  # who asks what it takes is told
        self._ends, self._layers = ends, layers
        self._modules = [ends.norm, ends.head, *(each.layer for each in layers)]
        self._scalings = {each.parts.number: each.parts.scaling for each in layers}
        self._mine = threading.local()

    def __call__(self, *given: Any, **told: Any) -> Any:
        """As the model takes it; what it is not made for goes the model's own way."""
        mine = not given and "cairn_attention" in told and told.keys() <= KNOWN
        if not mine or told["input_ids"].shape[1] > FEW or self._watched:
            return self._whole(*given, **told)
        return self.run(**told)

    def run(
        self,
        input_ids: Tensor,
        cairn_attention: Attention,
        cairn_step: Step,
        logits_to_keep: int | Tensor = 0,
        **_: Any,
    ) -> Output:
        """Whatever it is made for."""
        wanted = None if isinstance(logits_to_keep, int) else logits_to_keep
        return Output(self._logits(input_ids, wanted, cairn_attention, cairn_step)[None])

    @property
    def _watched(self) -> bool:
        """Whether somebody looks at what parts of it give."""
        return any(each._forward_hooks or each._forward_pre_hooks for each in self._modules)

    def _logits(self, ids: Tensor, wanted: Tensor | None, attention: Attention, step: Step) -> Tensor:
        """Of tokens (1, positions), at rows that are wanted, or all: (rows, vocabulary)."""
        x = self._ends.embedding(ids)
        laid = self._laid(ids.shape[1])
        first = laid.layers[0]
        listed = attention.listed(self._scalings, first.q, first.k, first.v, first.attended, step)
        if listed is None:
            for layer in self._layers:
                x = layer.run(x, attention, step)
            return self._ended(x[0], wanted)
        first.given.copy_(x[0])
        if wanted is not None:
            laid.do_layers(listed.jobs, end=False)
            listed.done()
            return self._ended(first.given, wanted)
        logits = laid.end.aimed()
        laid.do_layers(listed.jobs, end=True)
        listed.done()
        return logits

    def _ended(self, x: Tensor, wanted: Tensor | None) -> Tensor:
        """Logits (rows, vocabulary) of what came out of the layers (positions, channels), at rows that are wanted."""
        rows = x if wanted is None else x[wanted]
        end = self._end(len(rows))
        end.given.copy_(rows)
        logits = end.aimed()
        end.tasks.do()
        return logits

    def _laid(self, rows: int) -> Laid:
        known: dict[int, Laid] = vars(self._mine).setdefault("laid", {})
        if rows not in known:
            made = [LayerTasks(each.parts, each.head_dim, each.rooms, rows) for each in self._layers]
            known[rows] = Laid(made, self._end(rows))
        return known[rows]

    def _end(self, rows: int) -> EndTasks:
        known: dict[int, EndTasks] = vars(self._mine).setdefault("ends", {})
        if rows not in known:
            known[rows] = EndTasks(self._ends.norm, self._ends.head, self._layers[0].rooms, rows)
        return known[rows]
