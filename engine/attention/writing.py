"""Keys and values of a span that is read in pieces, put into the cache by a kernel before anybody reads them.

By torch they are turned and written in calls whose threads wait for each other: while another process had a core, half
of the time that 512 tokens took beside the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from cache import Task, Tasks, threads_for
from engine.attention.desk import GIVEN, PLACED, Given, bits, pool_bits
from engine.attention.plans import Plan, Standing


class Writing:
    """Layer after layer, for the pieces of one span.

    Args:
        pieces: how each of them stands
        given, pools: what a layer gets, and its cache
    """

    def __init__(self, pieces: Sequence[tuple[Plan, Standing]], given: Given, pools: tuple[Tensor, Tensor]) -> None:
        self._kept: list[object] = []  # what lies at addresses that tasks have, though nothing is there to be read
        tasks = [self._task(*piece, given, pools) for piece in pieces]
        self._numbers = sum(len(plan.positions) for plan, _ in pieces) * given.k.shape[2]
        self._heads, self._pieces, self._tasks = given.k.shape[1], len(pieces), Tasks(tasks)

    def do(self, given: Given, pools: tuple[Tensor, Tensor]) -> None:
        """Write what a layer got."""
        for piece in range(self._pieces):
            for place, x in zip((*GIVEN, *PLACED), (given.q, given.k, given.v, *pools), strict=True):
                self._tasks.put(piece, place, x.data_ptr())
        self._tasks.do(threads_for(self._heads, self._numbers))

    def _task(self, plan: Plan, stands: Standing, given: Given, pools: tuple[Tensor, Tensor]) -> Task:
        """As a desk places queries, of which there are none here."""
        from engine.attention import place_kernels

        heads, count, dim = *stands.own.shape, given.k.shape[2]
        nothing, weight = np.empty((heads, count, 0, dim), np.float32), np.empty((heads, count, 0), np.float32)
        keys, values = (pool_bits(pool) for pool in pools)
        q, k, v = (bits(x) for x in (given.q, given.k, given.v))
        scale = np.zeros(count, np.float32)
        where = (stands.rows, scale, stands.far_turns, stands.own_turns)
        arguments = (
            q, k, v, *where, plan.rotation.interleaved, keys, values, stands.own, stands.offsets, plan.size, nothing,
            nothing, weight, nothing,
        )  # fmt: skip
        self._kept += [nothing, weight, scale, stands]
        return place_kernels.shared_place(k.dtype, keys.dtype).task(arguments, heads)
