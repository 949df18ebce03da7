"""Experts of a mixture on a CPU: of many matrices in one block each token takes a few.

transformers multiplies them by torch, which reads matrices of 16 bits for few rows at a third of the memory's
bandwidth. Here rows go to their experts' matrices as those of linear layers do (`linear`, `pairs`), the few rows of all
experts in one call.

Letters in shapes: E experts, S pairs of a token and an expert of its, in the order of experts, O outputs, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache import Task, Tasks
from engine.linear import LANES, SHORT, WideProduct
from engine.many_rows import native
from engine.pairs import FEW, PairProduct, ask_job, multiply_job, piece_of
from engine.rounded import rounded

SCALES = "_scales"
"""Ends the name of what weights in 8 bits are multiplied with."""


class ExpertProduct:
    """What a matrix of each expert gives.

    Args:
        experts: the module that has them as one block (E, O, C), 16-bit or int8, and perhaps biases (E, O) and scales
            fp32 (E, O); they may be moved
        name: of the block
        pairs: whether there are kernels for them (`PairProduct.fits`)
    """

    def __init__(self, experts: nn.Module, name: str, *, pairs: bool) -> None:
        self._experts, self._name, self._pairs = experts, name, pairs

    @property
    def _block(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Weights, biases and scales."""
        experts, name = self._experts, self._name
        bias = getattr(experts, f"{name}_bias") if experts.has_bias else None
        return getattr(experts, name), bias, getattr(experts, name + SCALES, None)

    def __call__(self, x: Tensor, counts: list[int]) -> Tensor:
        """x (S, C) to (S, O) of the same type; of its rows the first counts[0] are the first expert's, and so on."""
        weight = self._block[0]
        product = torch.empty(len(x), weight.shape[1], dtype=x.dtype)
        few = []
        for expert, start, stop in spans(counts):
            if self._pairs and stop - start <= FEW and x.dtype == torch.bfloat16:
                few.append((expert, start, stop))
            else:
                product[start:stop] = self._many(x[start:stop], expert)
        if few:
            self._multiply(x.contiguous(), few, product)
        return product

    def _many(self, x: Tensor, expert: int) -> Tensor:
        """One expert's rows."""
        weight, bias, scales = (each if each is None else each[expert] for each in self._block)
        assert weight is not None
        return (PairProduct if self._pairs else WideProduct)(weight, bias, scales)(x)

    def _multiply(self, x: Tensor, few: list[tuple[int, int, int]], product: Tensor) -> None:
        """Few rows of several experts in one call."""
        weight, bias, scales = self._block
        outputs, channels = weight.shape[1:]
        experts, starts, stops = np.array(few).T
        words = (0, outputs, channels, 0, 0, 0, 0, 0)  # as `pair_kernels.multiply` takes them
        piece, ask = piece_of(weight[0]), ask_job(weight.dtype)
        task = Task(multiply_job(weight.dtype), words, range(len(words)), outputs, piece, ask)
        tasks = Tasks([task], len(few))
        for place, each, numbers in (
            (0, weight, experts),
            (3, x, starts),
            (5, product, starts),
            (6, bias, experts),
            (7, scales, experts),
        ):
            if each is not None:
                tasks.put(0, place, (each.data_ptr() + numbers * each.stride(0) * each.itemsize).tolist())
        tasks.put(0, 4, (stops - starts).tolist())
        tasks.do()


def spans(counts: list[int]) -> Iterator[tuple[int, int, int]]:
    """Each expert that has rows, its first one, and the first one of the next."""
    start = 0
    for expert, count in enumerate(counts):
        if count:
            yield expert, start, start + count
            start += count


class QuickExperts:
    """In place of the `forward` of experts that keep their matrices in blocks."""

    def __init__(self, experts: nn.Module, *, pairs: bool) -> None:
        self._experts: Any = experts
        self._up, self._down = (ExpertProduct(experts, name, pairs=pairs) for name in blocks_of(experts))

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Tokens (T, C) through the experts that each chose (T, K), summed with their weights (T, K): (T, C)."""
        experts, each = self._experts, top_k_index.shape[1]
        chosen, order = top_k_index.flatten().sort(stable=True)  # (S,)
        counts = torch.bincount(chosen, minlength=experts.num_experts).tolist()
        inner = self._up(hidden_states[order // each], counts)  # (S, width)
        inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
        outer = self._down(inner, counts)  # (S, C)
        if experts.has_post_expert_norm:
            outer = experts.post_expert_norm(outer)
        weighted = outer * top_k_weights.flatten()[order, None]
        told = torch.empty_like(weighted)
        told[order] = weighted
        return told.view(-1, each, told.shape[1]).sum(1).to(hidden_states.dtype)


def blocks_of(experts: Any) -> tuple[str, str]:
    """What the matrices into and out of the experts are called."""
    return ("gate_up_proj" if experts.has_gate else "up_proj"), "down_proj"


def in_blocks(module: nn.Module) -> bool:
    """Whether these are experts on the CPU that transformers keeps in blocks, outputs before channels."""
    if getattr(module, "is_transposed", None) is not False or not hasattr(module, "_apply_gate"):
        return False
    blocks = [getattr(module, name, None) for name in blocks_of(module)]
    return all(
        isinstance(block, Tensor) and block.ndim == 3 and block.device.type == "cpu" and block.is_contiguous()
        for block in blocks
    )


def round_experts(model: nn.Module) -> None:
    """Keep a model's experts on the CPU in 8 bits, as `rounded` keeps linear layers; each old block is let go first."""
    for module in model.modules():
        if in_blocks(module):
            round_blocks(module)


def round_blocks(experts: Any) -> None:
    names = blocks_of(experts)
    dtype = getattr(experts, names[0]).dtype
    for name in names:
        shape = getattr(experts, name).shape  # (E, O, C)
        numbers, scales = rounded(getattr(experts, name).detach().flatten(0, 1))
        setattr(experts, name, nn.Parameter(numbers.view(shape), requires_grad=False))
        experts.register_buffer(name + SCALES, scales.view(shape[:2]))
    pairs = dtype == torch.bfloat16 and all(PairProduct.fits(getattr(experts, name)[0]) for name in names)
    experts.forward = QuickExperts(experts, pairs=pairs)


def quicken_experts(model: nn.Module) -> Callable[[], None]:
    """Let a model's experts of 16 bits go the fast way; the function that is returned undoes it."""
    changed = []
    for module in model.modules():
        if in_blocks(module) and "forward" not in vars(module) and (quick := quick_experts(module)) is not None:
            module.forward = quick
            changed.append(module)

    def undo() -> None:
        for module in changed:
            del module.forward

    return undo


def quick_experts(module: nn.Module) -> QuickExperts | None:
    """What is faster than the experts' own `forward` on this machine, if anything is."""
    matrices = [getattr(module, name)[0] for name in blocks_of(module)]
    if matrices[0].dtype not in SHORT:
        return None
    if all(map(PairProduct.fits, matrices)):
        return QuickExperts(module, pairs=True)
    alone = native(matrices[0].dtype) or any(each.shape[1] % LANES for each in matrices)
    return None if alone else QuickExperts(module, pairs=False)
