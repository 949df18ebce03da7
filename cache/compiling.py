"""How CPU kernels are compiled; Numba is loaded when the first one is."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

JOBS: list[Any] = []
"""Compiled jobs, whose code lives as long as they do."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without the GIL; keep the machine code for the next start where a folder can be written."""
    import numba  # a second

    options: dict[str, Any] = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # a read-only installation without a cache folder
        return numba.njit(function, **options)


def job(function: Callable[..., Any]) -> int:
    """Compile what threads may share (`team_kernels`): takes the address of its arguments and a range of numbers.

    Returns its address.
    """
    import numba

    signature = numba.types.void(*[numba.types.intp] * 3)
    try:
        made = numba.cfunc(signature, cache=True, fastmath=True, error_model="numpy")(function)
    except RuntimeError:
        made = numba.cfunc(signature, fastmath=True, error_model="numpy")(function)
    JOBS.append(made)
    return int(made.address)


@functools.cache
def kernels(name: str) -> Any:
    """The module `cache.{name}_kernels`, loaded when it is first needed: Numba takes a second."""
    return importlib.import_module(f"cache.{name}_kernels")
