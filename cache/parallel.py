"""Work on ranges of heads by several threads; it releases the GIL, as kernels and matrix products do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import get_ident

import torch

PER_THREAD = 32768
"""Fewer products than this are not worth a second thread, which may have gone away and have to be woken."""


def threads_for(heads: int, each: int) -> int:
    """How many threads are worth so many products of each head."""
    return min(torch.get_num_threads(), heads, max(1, heads * each // PER_THREAD))


@cache
def pool(threads: int, caller: int) -> ThreadPoolExecutor:
    """So many threads for one that calls: of two passes at once neither waits for the other's heads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="heads")


def over_heads(work: Callable[[slice], None], heads: int, each: int) -> None:
    """Do the work of all heads, so many products each, on ranges of them at once where that is worth it."""
    threads = threads_for(heads, each)
    if threads <= 1:
        work(slice(0, heads))
        return
    ranges = [slice(heads * i // threads, heads * (i + 1) // threads) for i in range(threads)]
    inference = torch.is_inference_mode_enabled()  # a mode is a thread's own

    def elsewhere(some: slice) -> None:
        with torch.inference_mode(inference):
            work(some)

    others = [pool(threads - 1, get_ident()).submit(elsewhere, some) for some in ranges[1:]]
    work(ranges[0])
    for other in others:
        other.result()
