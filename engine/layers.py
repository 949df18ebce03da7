"""Decoder layers of a few positions on a CPU, compiled from one attention to the next.

For one token the weights of a layer go through all caches of the processor, and push out of them what it takes to
call torch from Python. Some twenty such calls between two products then cost more than twice what they cost by
themselves: a seventh of a token's time for a model of a billion weights. So where a layer is of the usual kind (norm,
attention, norm, gated SiLU) all of it but attention becomes two lists of jobs for the team.

Which layers are of that kind is seen, not believed: a layer of the right parts runs twice with a pretended attention,
and what jobs make of its input must be what came out of it. All others are left as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cache import Task, Tasks
from engine.pairs import FEW, PairProduct, piece_of
from engine.rounded import RoundedLinear, matrix_of

LANES = 16
STEPS = 64
"""Times 16 numbers that a thread claims at once."""
NORM_INPUT, PRODUCT_INPUT, ADD_ONE, ADD_TO = 0, 3, 0, 2
"""Words of jobs that change from call to call."""
OUT, RESIDUAL, LAST = 0, 1, 7
"""Places of such jobs behind attention."""
TOKENS = 3
"""With so many a layer shows what it is."""
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.03}
"""Largest difference, relative to what a layer changes, that counts as equal: what rounding makes of one."""
LOUD = 64.0
"""A layer is looked at twice, the second time with norms that give so many times as much: what clamps shows itself then
only. A power of two, so that weights become what they were."""


Product = nn.Linear | RoundedLinear


@dataclass(frozen=True)
class Parts:
    """The modules of a usual layer."""

    before: Any
    q: Product
    k: Product
    v: Product
    q_norm: Any
    k_norm: Any
    o: Product
    after: Any
    gate: Product
    up: Product
    down: Product

    @property
    def products(self) -> tuple[Product, ...]:
        return self.q, self.k, self.v, self.o, self.gate, self.up, self.down

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers that go through."""
        dtype = self.before.weight.dtype
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def matrices(self) -> list[Tensor]:
        return [matrix_of(product) for product in self.products]

    @property
    def norms(self) -> tuple[Any, ...]:
        given = (self.before, self.q_norm, self.k_norm, self.after)
        return tuple(norm for norm in given if norm is not None)

    @classmethod
    def of(cls, layer: Any) -> Parts | None:
        """Those of a layer that has all of them."""
        try:
            attention, mlp = layer.self_attn, layer.mlp
            found = cls(
                layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj,
                getattr(attention, "q_norm", None), getattr(attention, "k_norm", None), attention.o_proj,
                layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj, mlp.down_proj,
            )  # fmt: skip
            known = isinstance(attention.layer_idx, int) and isinstance(attention.scaling, float)
            known = known and is_silu(mlp.act_fn)
        except AttributeError:
            return None
        return found if known else None

    def fits(self, kv_heads: int, head_dim: int) -> bool:
        """Whether there are kernels for them, and a cache of such heads takes their keys and values."""
        kind = type(self.q)
        if kind not in (nn.Linear, RoundedLinear) or any(type(product) is not kind for product in self.products):
            return False
        if any(epsilon_of(norm) is None for norm in self.norms) or not self._sized(kv_heads, head_dim):
            return False
        if not self._typed(torch.int8 if kind is RoundedLinear else self.dtype):
            return False
        if any(size % LANES for norm in self.norms for size in norm.weight.shape):
            return False
        if self.dtype == torch.bfloat16:
            return all(PairProduct.fits(matrix) for matrix in self.matrices)
        return self.dtype == torch.float32 and all(size % LANES == 0 for size in self._sizes)

    def _typed(self, weights: torch.dtype) -> bool:
        """Whether matrices are of this type, all else is of the norms', and jobs can take it as it lies in memory."""
        matrices, others = self.matrices, [norm.weight for norm in self.norms]
        others += [product.bias for product in self.products if product.bias is not None]
        typed = all(x.dtype == weights for x in matrices) and all(x.dtype == self.dtype for x in others)
        return typed and all(x.device.type == "cpu" and x.is_contiguous() for x in (*matrices, *others))

    def _sized(self, kv_heads: int, head_dim: int) -> bool:
        """Whether they have the sizes that jobs take for granted: what is wider would be written beyond its room."""
        hidden, inner = matrix_of(self.down).shape
        queries, keys = len(matrix_of(self.q)), kv_heads * head_dim
        products = (queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries), *[(inner, hidden)] * 2
        sized = [tuple(matrix.shape) for matrix in self.matrices] == [*products, (hidden, inner)]
        whole = all(norm.weight.shape == (hidden,) for norm in (self.before, self.after))
        of_heads = all(norm is None or norm.weight.shape == (head_dim,) for norm in (self.q_norm, self.k_norm))
        return sized and whole and of_heads and queries % keys == 0

    @property
    def _sizes(self) -> list[int]:
        return [size for matrix in self.matrices for size in matrix.shape]


def epsilon_of(norm: Any) -> float | None:
    """What a norm adds to a mean square, whatever it calls it."""
    found = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return found if isinstance(found, float) else None


@torch.inference_mode()
def is_silu(activation: Callable[[Tensor], Tensor]) -> bool:
    """Whether it is; GELU is so near to it for small numbers that a layer does not show it."""
    x = torch.linspace(-20, 20, 401)
    return torch.allclose(activation(x), functional.silu(x), atol=1e-5)


class Rooms(threading.local):
    """What the layers of a model work in, one after the other: each thread has its own, for FEW rows.

    Args:
        widths: numbers of a row, by name
    """

    def __init__(self, widths: dict[str, int], dtype: torch.dtype) -> None:
        self._rooms = {name: torch.empty(FEW * width, dtype=dtype) for name, width in widths.items()}

    def rows(self, name: str, rows: int, width: int) -> Tensor:
        """(rows, width)"""
        return self._rooms[name][: rows * width].view(rows, width)


class LayerTasks:
    """A layer's tasks for so many rows, on one thread."""

    def __init__(self, parts: Parts, head_dim: int, rooms: Rooms, rows: int) -> None:
        from engine import layer_kernels

        self.rows, self._jobs = rows, layer_kernels.jobs(parts.dtype.itemsize, matrix_of(parts.q).dtype)
        self._kept: list[Tensor] = []  # what else lies at addresses that tasks have, whatever a model gets instead
        room = {name: rooms.rows(name, rows, width) for name, width in widths_of(parts).items()}
        q, k, v, normed, gate, up = (room[name] for name in ("q", "k", "v", "normed", "gate", "up"))
        self.q, self.k, self.v = (x.view(rows, -1, head_dim) for x in (q, k, v))
        of_heads = (parts.q_norm, q), (parts.k_norm, k)
        given = torch.empty(0)  # its address is put in when it is known
        self.before = Tasks([
            self._norm(parts.before, given, normed, rows),
            *(self._product(layer, normed, to) for layer, to in ((parts.q, q), (parts.k, k), (parts.v, v))),
            *(self._norm(norm, x, x, x.numel() // head_dim) for norm, x in of_heads if norm is not None),
        ])  # fmt: skip
        self.after = Tasks([
            self._product(parts.o, given, normed),
            self._add(given, normed, room["stream"]),
            self._norm(parts.after, room["stream"], normed, rows),
            self._product(parts.gate, normed, gate),
            self._product(parts.up, normed, up),
            self._elementwise(self._jobs.swish, gate, up, gate),
            self._product(parts.down, gate, normed),
            self._add(room["stream"], normed, given),
        ])  # fmt: skip

    def _norm(self, norm: Any, x: Tensor, to: Tensor, rows: int) -> Task:
        weight, epsilon = self._keep(norm.weight), epsilon_of(norm)
        bits = int(np.float64(epsilon).view(np.int64))
        words = (x.data_ptr(), weight.data_ptr(), to.data_ptr(), len(weight), bits)
        return Task(self._jobs.norm, words, range(len(words)), rows)

    def _product(self, layer: Product, x: Tensor, to: Tensor) -> Task:
        weight, scales = self._keep(matrix_of(layer)), layer.scales if isinstance(layer, RoundedLinear) else None
        outputs, channels = weight.shape
        more = [0 if each is None else self._keep(each).data_ptr() for each in (layer.bias, scales)]
        words = (weight.data_ptr(), outputs, channels, x.data_ptr(), self.rows, to.data_ptr(), *more)
        return Task(self._jobs.multiply, words, range(len(words)), outputs, piece_of(weight))

    def _keep(self, weight: Tensor) -> Tensor:
        self._kept.append(weight.detach())
        return self._kept[-1]

    def _add(self, one: Tensor, other: Tensor, to: Tensor) -> Task:
        return self._elementwise(self._jobs.add, one, other, to)

    def _elementwise(self, job: int, one: Tensor, other: Tensor, to: Tensor) -> Task:
        words = (one.data_ptr(), other.data_ptr(), to.data_ptr())
        return Task(job, words, range(len(words)), other.numel() // LANES, STEPS)


class QuickLayer:
    """What stands for a layer's `forward`.

    Args:
        rooms: of the layers of its model
    """

    def __init__(self, layer: Any, parts: Parts, head_dim: int, rooms: Rooms) -> None:
        self._whole: Callable[..., Tensor] = layer.forward
        self._parts, self._head_dim, self._rooms = parts, head_dim, rooms
        self._number, self._scaling = layer.self_attn.layer_idx, layer.self_attn.scaling
        self._dtype, self._width = parts.dtype, matrix_of(parts.q).shape[1]
        self._mine = threading.local()

    def __call__(self, hidden_states: Tensor, **told: Any) -> Tensor:
        """(1, positions, channels) to the same."""
        rows, x = hidden_states.numel() // self._width, hidden_states
        mine = "cairn_attention" in told  # else it is trained, or compared
        if not mine or rows > FEW or x.dtype != self._dtype or not x.is_contiguous():
            return self._whole(hidden_states, **told)
        tasks = self._tasks(rows)
        tasks.before.put(0, NORM_INPUT, x.data_ptr())
        tasks.before.do()
        attention, step = told["cairn_attention"], told["cairn_step"]
        attended = attention(self._number, tasks.q, tasks.k, tasks.v, step, self._scaling, None).contiguous()
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
            tasks = self._mine.tasks = LayerTasks(self._parts, self._head_dim, self._rooms, rows)
        return tasks


def widths_of(parts: Parts) -> dict[str, int]:
    """Numbers of a row of what a layer works in."""
    hidden, inner = matrix_of(parts.down).shape
    heads = {name: len(matrix_of(layer)) for name, layer in (("q", parts.q), ("k", parts.k), ("v", parts.v))}
    return {"normed": hidden, "stream": hidden, "gate": inner, "up": inner, **heads}


# -- which layers are usual ---------------------------------------------------------------------------------------


def pretended(
    layer: int, q: Tensor, k: Tensor, v: Tensor, step: object, scaling: float, softcap: float | None
) -> Tensor:
    """Attention that shows whether it was handed what it should be."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return (q * scaling + k / 2 + v) * (1 if softcap is None else softcap)


def pretended_step(kv_heads: int, head_dim: int) -> Any:
    """A step of a session whose cache has so many heads and channels."""
    session = SimpleNamespace(layout=SimpleNamespace(kv_heads=kv_heads, head_dim=head_dim))
    return SimpleNamespace(spans=[SimpleNamespace(session=session)])


@dataclass
class Seen:
    """A layer at work."""

    hidden: Tensor
    told: dict[str, Any]
    output: Tensor


def quicken_layers(model: nn.Module, kv_heads: int, head_dim: int) -> Callable[[], None]:
    """Let a model's usual layers go the fast way; the function that is returned undoes it.

    Weights that a layer gets afterwards, and hooks or adapters within it, are not seen where it goes that way.

    Args:
        kv_heads, head_dim: as the cache has them; a layer that has others is left alone
    """
    found = ((layer, Parts.of(layer)) for layer in model.modules())
    fitting = {layer: parts for layer, parts in found if parts is not None and parts.fits(kv_heads, head_dim)}
    if not fitting:
        return lambda: None
    rooms, step = rooms_of(list(fitting.values())), pretended_step(kv_heads, head_dim)
    quick = {layer: QuickLayer(layer, parts, head_dim, rooms) for layer, parts in fitting.items()}
    for times in (1.0, LOUD):
        with louder(list(fitting.values()), times):
            seen = observed(model, list(quick), step)
            quick = {layer: mine for layer, mine in quick.items() if layer in seen and mine.gives(seen[layer])}
    for layer, mine in quick.items():
        layer.forward = mine

    def undo() -> None:
        for layer in quick:
            vars(layer).pop("forward", None)

    return undo


def rooms_of(all_parts: list[Parts]) -> Rooms:
    """For layers of such parts."""
    widths = [widths_of(parts) for parts in all_parts]
    return Rooms({name: max(each[name] for each in widths) for name in widths[0]}, all_parts[0].dtype)


@contextmanager
def louder(all_parts: list[Parts], times: float) -> Iterator[None]:
    """Meanwhile norms give so many times as much."""
    weights = {id(norm.weight): norm.weight.data for parts in all_parts for norm in parts.norms}.values()
    for weight in weights:
        weight.mul_(times)
    try:
        yield
    finally:
        for weight in weights:
            weight.div_(times)


@torch.inference_mode()
def observed(model: nn.Module, layers: Sequence[nn.Module], step: object) -> dict[nn.Module, Seen]:
    """What goes into layers and comes out of them, for a few tokens."""
    seen: dict[nn.Module, Seen] = {}

    def look(layer: nn.Module, given: tuple[Any, ...], told: dict[str, Any], output: Any) -> None:
        if len(given) == 1 and isinstance(output, Tensor):
            seen[layer] = Seen(given[0].clone(), told, output.clone())

    hooks = [layer.register_forward_hook(look, with_kwargs=True) for layer in layers]
    try:
        tokens = torch.arange(1, TOKENS + 1)[None]
        still = torch.zeros_like(tokens)
        model(input_ids=tokens, position_ids=still, use_cache=False, cairn_attention=pretended, cairn_step=step)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def alike(found: Tensor, seen: Seen) -> bool:
    """Whether a layer changed its input so, but for rounding."""
    change = (seen.output - seen.hidden).float().abs().max()
    rounding = 2 * torch.finfo(seen.output.dtype).eps * seen.output.float().abs()
    close = TOLERANCES[seen.output.dtype] * change + rounding
    return bool(((found - seen.output).float().abs() <= close).all())
