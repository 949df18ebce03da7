"""Threads that stand by while a step runs, so that each of its hundreds of short jobs gets all cores at once.

Waking a thread through Python takes 50 to 100 µs, as long as a core reads a megabyte or two. So helpers look for the
next job themselves for about a millisecond, and let others onto their core between two looks; only who has gone away
is woken. See `team_kernels`.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch

from cache.compiling import kernels

PATIENCE = 1500
"""Looks for a job, about a millisecond of them: longer than what a layer does between two jobs."""


class Team:
    """As many threads as torch may use, the calling one among them."""

    def __init__(self, threads: int) -> None:
        self._kernels = kernels("team")
        self._count, self._helpers = threads, threads - 1
        self._words = np.zeros((self._kernels.PARTS + (threads + 1) * self._kernels.LINE) // 8, np.int64)
        self._box = -(-self._words.ctypes.data // self._kernels.LINE) * self._kernels.LINE
        self._words[(self._box - self._words.ctypes.data + self._kernels.STATE) // 8] = self._kernels.CLOSED
        self._busy = threading.Lock()
        self._threads = ThreadPoolExecutor(max(1, self._helpers), thread_name_prefix="team")

    def do(self, jobs: int, count: int) -> None:
        """Do jobs, given by their address, one after the other; those of several threads take turns."""
        with self._busy:
            for _ in range(self._kernels.call_up(self._box, self._helpers)):
                self._threads.submit(self._kernels.stand_by, self._box, PATIENCE, self._count)
            self._kernels.lead(self._box, jobs, count, self._count)


@cache
def team(threads: int, caller: int) -> Team:
    """Each thread that calls has one of its own, so that of two passes at once neither waits for the other's jobs."""
    return Team(threads)


def together(jobs: int, count: int = 1, threads: int | None = None) -> None:
    """Do jobs, given by their address, one after the other, with so many threads, or as many as torch may use."""
    team(torch.get_num_threads() if threads is None else threads, threading.get_ident()).do(jobs, count)
