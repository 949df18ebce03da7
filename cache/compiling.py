"""How CPU kernels are compiled, and when what was compiled is taken again; Numba is loaded when the first one is."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache.sources import stamp

JOBS: list[Any] = []
"""Compiled jobs, whose code lives as long as they do."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without the GIL; keep the machine code for the next start where a folder can be written.

    Sums stay in their order, and divisions are exact: with `fastmath` the same kernel would give other last bits in
    another process, and for another number of queries. Kernels say themselves where a vector's lanes may be added up in
    any order (`cache.lane_kernels`).
    """
    import numba  # a second

    made = numba.njit(function, nogil=True, error_model="numpy")
    keep(made, function)
    return made


def keep(made: Any, function: Callable[..., Any]) -> None:
    """Let Numba keep machine code for the next start, until a source changes that it comes from.

    By itself Numba looks at the file of the function alone. Where no folder can be written nothing is kept.
    """
    from numba.core.caching import IndexDataCacheFile

    try:
        made.enable_caching()
    except RuntimeError:  # a read-only installation without a cache folder
        return
    cache, path = made._cache, Path(function.__code__.co_filename)
    sources = stamp(path, tuple(sorted({"cache", function.__module__.split(".")[0]})))
    cache._cache_file = IndexDataCacheFile(cache.cache_path, cache._impl.filename_base, sources)


def job(function: Callable[..., Any]) -> int:
    """Compile what threads may share (`team_kernels`): takes the address of its arguments and a range of numbers.

    Returns its address.
    """
    from numba import types
    from numba.core.ccallback import CFunc

    signature = (types.intp,) * 3, types.void
    made: Any = CFunc(function, signature, locals={}, options={"error_model": "numpy"})
    keep(made, function)
    made.compile()
    JOBS.append(made)
    return int(made.address)


@functools.cache
def kernels(name: str) -> Any:
    """The module `cache.{name}_kernels`, loaded when it is first needed: Numba takes a second."""
    return importlib.import_module(f"cache.{name}_kernels")
