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
from engine.attention.base import Attention
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


@dataclass(frozen=True)
class Laid:
    """Tasks for so many rows, on one thread; the rooms that they work in are the same."""

    layers: list[LayerTasks]
    end: EndTasks

    @property
    def rows(self) -> int:
        return self.end.rows


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
        if wanted is not None:
            return self._by_layer(x, wanted, attention, step)
        laid = self._laid(ids.shape[1])
        first = laid.layers[0]
        listed = attention.listed(self._scalings, first.q, first.k, first.v, first.attended, step)
        if listed is None:
            return self._by_layer(x, None, attention, step)
        first.given.copy_(x[0])
        logits = laid.end.aimed()
        each = zip(laid.layers, listed.jobs, strict=True)
        jobs = [part for mine, its in each for part in (mine.before.jobs[0], its, mine.after.jobs[0])]
        program = np.concatenate((*jobs, laid.end.tasks.jobs[0]))
        together(program.ctypes.data, len(program))
        listed.done()
        return logits

    def _by_layer(self, x: Tensor, wanted: Tensor | None, attention: Attention, step: Step) -> Tensor:
        for layer in self._layers:
            x = layer.run(x, attention, step)
        rows = x[0] if wanted is None else x[0, wanted]
        end = self._laid(len(rows)).end
        end.given.copy_(rows)
        logits = end.aimed()
        end.tasks.do()
        return logits

    def _laid(self, rows: int) -> Laid:
        laid: Laid | None = getattr(self._mine, "laid", None)
        if laid is None or laid.rows != rows:
            made = [LayerTasks(each.parts, each.head_dim, each.rooms, rows) for each in self._layers]
            end = EndTasks(self._ends.norm, self._ends.head, self._layers[0].rooms, rows)
            laid = self._mine.laid = Laid(made, end)
        return laid
