"""How CPU kernels are compiled; Numba is loaded when the first one is."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without the GIL; keep the machine code for the next start where a folder can be written."""
    import numba  # a second

    options: dict[str, Any] = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # a read-only installation without a cache folder
        return numba.njit(function, **options)


@functools.cache
def kernels(name: str) -> Any:
    """The module `cache.{name}_kernels`, loaded when it is first needed: Numba takes a second."""
    return importlib.import_module(f"cache.{name}_kernels")
