"""Decoder layers of the usual kind (norm, attention, norm, gated SiLU): what tells them, and how they are looked at.

Which layers are of that kind is seen, not believed: a layer of the right parts runs twice with a pretended attention,
and what others make of its input must be what came out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.pairs import PairProduct
from engine.rounded import RoundedLinear, matrix_of

LANES = 16
TOKENS = 3
"""With so many a layer shows what it is."""
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.03}
"""Largest difference, relative to what a layer changes, that counts as equal: what rounding makes of one."""
LOUDNESS = 2e-3
"""Largest difference of all that a layer changes taken together: rounding errors even out, to 4e-4 in small models."""
Product = nn.Linear | RoundedLinear


@dataclass(frozen=True)
class Parts:
    """What a usual layer is made of: its place in the model, what scores are multiplied with, and its modules."""

    number: int
    scaling: float
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
    def width(self) -> int:
        """Channels that go through."""
        return len(matrix_of(self.down))

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
                attention.layer_idx, attention.scaling,
                layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj,
                getattr(attention, "q_norm", None), getattr(attention, "k_norm", None), attention.o_proj,
                layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj, mlp.down_proj,
            )  # fmt: skip
            known = isinstance(found.number, int) and isinstance(found.scaling, float)
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


@dataclass(frozen=True)
class Ends:
    """What a model of usual layers has before and behind them: token vectors, a norm and an output layer."""

    embedding: nn.Module
    norm: Any
    head: Product

    @classmethod
    def of(cls, model: Any, layers: Iterable[nn.Module]) -> Ends | None:
        """Those of a model that has one norm beside its layers."""
        within = {module for layer in layers for module in layer.modules()}
        norms = [each for each in model.modules() if each not in within and epsilon_of(each) is not None]
        if len(norms) != 1:
            return None
        return cls(model.get_input_embeddings(), norms[0], model.get_output_embeddings())

    def fits(self, parts: Parts) -> bool:
        """Whether there are kernels for them beside those of such layers."""
        dtype, width = parts.dtype, parts.width
        if type(self.head) not in (nn.Linear, RoundedLinear) or self.norm.weight.shape != (width,):
            return False
        matrix, others = matrix_of(self.head), [self.norm.weight]
        others += [] if self.head.bias is None else [self.head.bias]
        lying = all(x.device.type == "cpu" and x.is_contiguous() for x in (matrix, *others))
        if not lying or any(x.dtype != dtype for x in others) or matrix.dtype not in (dtype, torch.int8):
            return False
        return PairProduct.fits(matrix) if dtype == torch.bfloat16 else True


def epsilon_of(norm: Any) -> float | None:
    """What a norm adds to a mean square, whatever it calls it."""
    found = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return found if isinstance(found, float) else None


@torch.inference_mode()
def is_silu(activation: Callable[[Tensor], Tensor]) -> bool:
    """Whether it is; GELU is so near to it for small numbers that a layer does not show it."""
    x = torch.linspace(-20, 20, 401)
    return torch.allclose(activation(x), functional.silu(x), atol=1e-5)


# -- looking at them ----------------------------------------------------------------------------------------------


class Pretended:
    """Attention that shows whether it was handed what it should be."""

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: object, scaling: float, softcap: float | None
    ) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        return (q * scaling + k / 2 + v) * (1 if softcap is None else softcap)

    def listed(self, *given: object) -> None:
        """It goes layer by layer."""


pretended = Pretended()


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


@contextmanager
def louder(norms: Iterable[Any], times: float) -> Iterator[None]:
    """Meanwhile norms give so many times as much."""
    weights = {id(norm.weight): norm.weight.data for norm in norms}.values()
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
        given_out(model, step)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@torch.inference_mode()
def given_out(model: Callable[..., Any], step: object) -> Tensor:
    """What a model makes of a few tokens: (1, TOKENS, vocabulary)."""
    tokens = torch.arange(1, TOKENS + 1)[None]
    still = torch.zeros_like(tokens)
    given = model(input_ids=tokens, position_ids=still, use_cache=False, cairn_attention=pretended, cairn_step=step)
    assert isinstance(given.logits, Tensor)
    return given.logits


def alike(found: Tensor, seen: Seen) -> bool:
    """Whether a layer changed its input so, but for rounding: number by number, and as much in all."""
    change, error = ((x - y).float() for x, y in ((seen.output, seen.hidden), (found, seen.output)))
    rounding = 2 * torch.finfo(seen.output.dtype).eps * seen.output.float().abs()
    close = TOLERANCES[seen.output.dtype] * change.abs().max() + rounding
    as_much = (error * change).sum().abs() <= LOUDNESS * change.square().sum()
    return bool(as_much and (error.abs() <= close).all())
