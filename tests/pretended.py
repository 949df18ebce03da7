"""A graphics card that is none: tensors say that they lie on `cuda`, and refuse to meet those that do not.

A pretended tensor holds an ordinary one. Every function of torch is done with what is held, and what comes out is
pretended again; a function that gets tensors of both kinds fails as it would on a real card, and so does what takes a
tensor's address or its memory as NumPy sees it. Stricter than a card in one thing: an index, too, must lie where what
it is an index of lies. As on a card, a tensor with one number on the CPU may meet any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CARD, META = torch.device("cuda"), torch.device("meta")
MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda}
BOTH = {Tensor.copy_}
"""What takes tensors of both kinds."""
REFUSED = {Tensor.numpy, Tensor.data_ptr, Tensor.__array__}
ASKS = {Tensor.device.__get__: CARD, Tensor.is_cuda.__get__: True, Tensor.is_cpu.__get__: False}  # type: ignore[attr-defined]
ASKS |= {Tensor.is_meta.__get__: False, Tensor.get_device: 0, Tensor.is_pinned: False}  # type: ignore[attr-defined]
ASKS |= {torch._has_compatible_shallow_copy_type: False}


class Mixed(RuntimeError):
    """Tensors of a card met tensors of the CPU."""


class Pretended(Tensor):
    """See the module."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> Pretended:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=META, requires_grad=requires_grad,
        )  # fmt: skip
        assert isinstance(made, Pretended)
        made.held = held
        return made

    def __init__(self, held: Tensor, requires_grad: bool = False) -> None: ...

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return done(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:  # asked by torch itself, for a parameter
            return Pretended(args[0].held)
        raise Mixed(f"{func} got to tensors of a card on a way where nobody looks at them")


class Card(TorchFunctionMode):
    """While it is entered, by this thread, tensors can be made on the card."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return done(func, args, kwargs or {})


def done(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A function of torch with what is held."""
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    mine = [x for x in tensors if isinstance(x, Pretended)]
    if mine and func in ASKS:
        return ASKS[func]
    if mine and func in REFUSED:
        raise TypeError(f"{func.__name__} of a tensor of {CARD}: copy it to host memory first")
    if func in MOVES:
        return moved(func, args, kwargs)
    if wanted := is_card(kwargs.get("device")):
        kwargs = {**kwargs, "device": "cpu"}
    if mine and func not in BOTH:
        check(func, tensors)
    with torch._C.DisableTorchFunctionSubclass():
        found = func(*tree_map(held, args), **tree_map(held, kwargs))
    if not mine and not wanted:
        return found
    if func in BOTH:
        return args[0]
    known = {id(x.held): x for x in mine}  # what works in place gives back what it was given
    return tree_map(
        lambda x: known.get(id(x), x) if not isinstance(x, Tensor) or id(x) in known else Pretended(x), found
    )


def check(func: Callable[..., Any], tensors: list[Tensor]) -> None:
    strangers = [x for x in tensors if not isinstance(x, Pretended) and x.dim()]
    if strangers:
        raise Mixed(f"{getattr(func, '__name__', func)}: {tuple(strangers[0].shape)} lies on the CPU, others on {CARD}")


def held(x: Any) -> Any:
    return x.held if isinstance(x, Pretended) else x


def is_card(device: Any) -> bool:
    return device is not None and not isinstance(device, int) and torch.device(device).type == CARD.type


def moved(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """What `to`, `cpu` and `cuda` give: a copy on the other side, if it is another one."""
    x, rest = args[0], [held(a) for a in args[1:]]
    told = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, torch.device | str)]
    told += [a.device for a in (*args[1:], kwargs.get("other")) if isinstance(a, Tensor)]
    there = {Tensor.cpu: False, Tensor.cuda: True}.get(
        func, any(map(is_card, told)) if told else isinstance(x, Pretended)
    )
    rest = ["cpu" if isinstance(a, torch.device | str) else a for a in rest]
    named = {k: "cpu" if k == "device" and v is not None else held(v) for k, v in kwargs.items()}
    with torch._C.DisableTorchFunctionSubclass():
        inside = held(x).to(*rest, **named) if func is Tensor.to else held(x)
        if there == isinstance(x, Pretended):
            return x if inside is held(x) else Pretended(inside) if there else inside
        return Pretended(inside.clone()) if there else inside.clone()
