"""How a job finds its arguments, which `sharing` laid out as words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import numpy_support
from numba.np.arrayobj import populate_array
from numpy.typing import NDArray

from cache.compiling import job
from cache.lane_kernels import I64
from cache.sharing import Shared, words_of

REAL, WHOLE, FLAG = types.float64, types.intp, types.boolean


def array(dtype: Any, dimensions: int) -> types.Array:
    """An argument that is an array, whole and in order."""
    return types.Array(numpy_support.from_dtype(np.dtype(dtype)), dimensions, "C")


def unpacker(*kinds: Any) -> Any:
    """A function that takes an address and returns the arguments that lie there, as a tuple of these types."""

    @intrinsic  # type: ignore[untyped-decorator]
    def unpack(context: Any, address: Any) -> Any:
        result = types.Tuple(kinds)

        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            words, place, found = b.inttoptr(arguments[0], I64.as_pointer()), 0, []
            for kind in kinds:
                count = 1 + kind.ndim if isinstance(kind, types.Array) else 1
                taken = [b.load(b.gep(words, [I64(place + i)])) for i in range(count)]
                found.append(argument(context, b, kind, taken))
                place += count
            return context.make_tuple(b, result, found)

        return result(types.intp), generate

    return unpack


def argument(context: Any, b: Any, kind: Any, words: list[Any]) -> Any:
    """One argument from its words."""
    if isinstance(kind, types.Array):
        return array_at(context, b, kind, words[0], words[1:])
    if kind is REAL:
        return b.bitcast(words[0], context.get_value_type(kind))
    return b.trunc(words[0], context.get_value_type(kind)) if kind is FLAG else words[0]


def array_at(context: Any, b: Any, kind: Any, address: Any, shape: list[Any]) -> Any:
    """An array, whole and in order, at an address; who made it keeps it."""
    made = context.make_array(kind)(context, b)
    itemsize = I64(kind.dtype.bitwidth // 8)
    strides = [itemsize]
    for size in reversed(shape[1:]):
        strides.insert(0, b.mul(strides[0], size))
    data = b.inttoptr(address, context.get_data_type(kind.dtype).as_pointer())
    whole, apart = cgutils.pack_array(b, shape), cgutils.pack_array(b, strides)
    populate_array(made, data=data, shape=whole, strides=apart, itemsize=itemsize, meminfo=None)
    return made._getvalue()


def shared(function: Any, *kinds: Any) -> Shared:
    """Compile a function of an address and a range of heads; at the address lie arguments of these kinds."""
    return Shared(job(function), known(*kinds))


def known(*kinds: Any) -> tuple[tuple[np.dtype[Any], int] | None, ...]:
    """Kinds as `sharing` knows them."""
    return tuple(
        (numpy_support.as_dtype(kind.dtype), kind.ndim) if isinstance(kind, types.Array) else None for kind in kinds
    )


def words(arguments: Sequence[Any], *kinds: Any) -> NDArray[np.int64]:
    """Arguments of these kinds as an `unpacker` takes them; arrays must live on."""
    return np.array(words_of(arguments, known(*kinds))[0], np.int64)
