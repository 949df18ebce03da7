"""Where queries that attend together are worked on: rooms, and the jobs that fill them, kept from layer to layer.

The weights of a decoded token go through all caches of the processor, so whatever Python, torch and NumPy are asked
between two layers comes anew from memory: small tensors cost more than the kernels. Here a layer changes a handful of
addresses, and asks for two lists of jobs; or who has all layers to do takes the lists of all of them beforehand.
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache import BlockIndex, BlockStore, CacheLayout, InRow, Task, Tasks, kernels, threads_for
from engine.attention.base import Jobs, RetrievalSettings
from engine.attention.plans import Floats, Numbers, Plan, Standing, padded
from engine.attention.rows import Rows

COLD = 4
"""What a key costs that is read from anywhere in memory, beside one of many in a row."""
GIVEN, SCALE, PLACED, OUTPUT = (0, 1, 2), 4, (8, 9), 1
POOLS, STARTS = (2, 3), 8
TABLES, PAIR_TABLES, SECTION_TABLES, OPENED_TABLES, STRETCH_TABLES = 2, 4, 6, 8, 4
"""Arguments that change from layer to layer, or from step to step: of placing q, k, v, their scale, and the cache's
keys and values; of finishing; of attending keys and values, and where blocks start; of choosing, and reading copies,
tables of indexes, and of choosing those of pairs, sections and opened blocks, or of stretches; borders stand behind."""
EVERYTHING = 1 << 40
"""Positions or blocks: more than there are."""
NO_TABLE = np.empty((0, 0), np.int64)
Tables = dict[tuple[int, int], list[list[Numbers]]]
"""Where indexes of sessions lie in each layer, by task and place among its arguments."""


@dataclass(frozen=True)
class Given:
    """What a layer got for all positions of a step, and what it gives back.

    Attributes:
        q, output: (positions, query_heads, head_dim), contiguous
        k, v: (positions, kv_heads, head_dim), contiguous
        scale: of queries, where it is one for all, or of each position (positions, 1, 1)
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float | Tensor
    output: Tensor

    def scale_of(self, rows: slice | Tensor) -> float | Tensor:
        """Of some of the positions."""
        return self.scale if isinstance(self.scale, float) else self.scale[rows]


class Scratch(threading.local):
    """Room that is used again and again; each thread has its own."""

    def __init__(self) -> None:
        self._room = np.empty(0, np.float32)

    def of(self, *shape: int) -> Floats:
        needed = math.prod(shape)
        if self._room.size < needed:
            self._room = np.empty(2 * needed, np.float32)
        return self._room[:needed].reshape(shape)


class Desk:
    """Queries of one plan, in one layer after the other.

    Args:
        plan, standing: where they stand
        groups: query heads per KV head
        window: positions that a query reads near itself; None for all
        starts: cosine and sine of the first position of each block (2, blocks, R)
        chooses: landmarks are looked at; otherwise the latest blocks are fetched
        writes: their keys and values are put into the cache with them; otherwise they are there

    Attributes:
        queries, far: scaled, and as far blocks see them (H, T, G, D)
        chosen: what each head fetches, and behind it what it reads from copies (H, T, K), -1 for nothing
        weight: logarithm of the mass of what is estimated (H, T, G)
        result: what is estimated, and in the end what was attended to (H, T, G, D)
    """

    def __init__(
        self, plan: Plan, standing: Standing, layout: CacheLayout, settings: RetrievalSettings, groups: int,
        window: int | None, starts: Floats, *, chooses: bool, writes: bool,
    ) -> None:  # fmt: skip
        self._layout, self._settings = layout, settings
        self._window, self._writes = window or EVERYTHING, writes
        self.chooses = chooses and plan.reach.fetch is not None
        shape = (layout.kv_heads, len(plan.positions), groups, layout.head_dim)
        self.queries, self.far, self.result = (np.empty(shape, np.float32) for _ in range(3))
        self.weight = np.empty(shape[:3], np.float32)
        self.fetched = plan.reach.fetch or 0
        self.chosen = np.full((*shape[:2], self.fetched + (settings.copied_blocks if self.chooses else 0)), -1)
        read = (*shape[:2], standing.fixed.shape[1] + self.fetched)
        self._numbers, self._places = np.empty(read, np.int64), np.empty(read, np.int64)
        self._room = np.empty(0, np.float32)
        self._kernels = kernels("recall"), kernels("copy")
        self._first: Tasks | None = None
        self._second: Tasks | None = None
        self._known: dict[str, Sequence[object]] = {}
        self._lying: dict[tuple[int, int], object] = {}
        self._standing = standing
        self.take(plan, starts)

    def take(self, plan: Plan, starts: Floats) -> None:
        """Queries of another plan of the same shape, as which they stand already, and where its blocks start."""
        self.plan, self._starts = plan, starts
        if self.fetched and not self.chooses:
            self.chosen[:] = self._standing.latest

    def leave(self) -> None:
        """Hold nothing of the plan's sessions until another one is taken."""
        del self.plan

    # -- choosing --------------------------------------------------------------------------------------------

    def choose(self, layer: int, given: Given, scratch: Scratch, *, by_scores: bool) -> None:
        """Put queries and their keys in place, and find out what is fetched, read from copies and estimated.

        Args:
            by_scores: who asks looks at landmarks itself afterwards
        """
        looks = self.chooses and not by_scores
        tasks = self._choosing([layer], [given], scratch, looks=looks)
        tasks.do(threads_for(self._layout.kv_heads, self._look_work))

    def _choosing(self, layers: Sequence[int], given: Sequence[Given], scratch: Scratch, *, looks: bool) -> Tasks:
        """What `choose` does for each of the layers, as many as ever."""
        pools = [self._cache(layer) for layer in layers]
        indexes = [self.indexes(layer) for layer in layers] if looks else []
        if looks:
            self._room = scratch.of(*self._room_shape)
        tasks = self._first
        if tasks is None:
            self._scales = np.stack([self._scale_of(each) for each in given])
            looking = self._looking(self._tables(indexes[:1]), self._room) if looks else []
            tasks = self._first = Tasks([InRow([self._placing(given[0], *pools[0]), *looking])], len(layers))
        if self._others("given", given):
            self._scales = np.stack([self._scale_of(each) for each in given])  # (layers, T)
            for place, name in zip(GIVEN, ("q", "k", "v"), strict=True):
                tasks.put(0, place, [getattr(each, name).data_ptr() for each in given])
            tasks.put(0, SCALE, [row.ctypes.data for row in self._scales])
        if self._others("written", pools):
            for place, each_pool in zip(PLACED, zip(*pools, strict=True), strict=True):
                tasks.put(0, place, [pool.data_ptr() for pool in each_pool])
        if looks:
            tasks.put(1, self._room_argument, self._room.ctypes.data)
            self._aim_tables(tasks, indexes)
        return tasks

    def _aim_tables(self, tasks: Tasks, indexes: Sequence[list[BlockIndex]]) -> None:
        """Tell where indexes of layers lie, if they lie elsewhere than they did."""
        tables = self._tables(indexes)
        for (task, place), of_layers in tables.items():
            if self._others(f"tables of {task}, {place}", [table for some in of_layers for table in some]):
                lying = [joined(some) for some in of_layers]
                self._lying[task, place] = lying  # as long as their addresses are used
                for argument, arrays in enumerate(zip(*lying, strict=True), place):
                    tasks.put_arrays(task, argument, arrays)

    def _others(self, name: str, things: Sequence[object]) -> bool:
        """Whether what has this name are others now than when it was last asked, which live on until then."""
        before = self._known.get(name, ())
        if len(before) == len(things) and all(map(operator.is_, before, things)):
            return False
        self._known[name] = things
        return True

    def _scale_of(self, given: Given) -> Floats:
        """Of the plan's queries (T,)."""
        scale = given.scale_of(self.plan.rows)
        if isinstance(scale, float):
            return np.full(len(self.plan.positions), scale, np.float32)
        return scale.flatten().numpy().astype(np.float32)

    def _cache(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer (places, B, D) into which those of the queries are written."""
        pools = self.pools(layer)
        if pools is None and self._writes:
            located = self.store.locate(layer, self.plan.own_slots.expand(self._layout.kv_heads, -1))
            self._standing.own[:] = located.at.numpy()
            return located.keys, located.values
        return pools or (self._nothing, self._nothing)

    @cached_property
    def _nothing(self) -> Tensor:
        return torch.empty(0, self._layout.block_size, self._layout.head_dim, dtype=self._layout.dtype)

    def indexes(self, layer: int) -> list[BlockIndex]:
        """Of the plan's sessions."""
        return [index for span in self.plan.spans if (index := span.session.indexes[layer]) is not None]

    def _tables(self, indexes: Sequence[list[BlockIndex]]) -> Tables:
        """Where the indexes of each layer lie."""
        tables = {(1, TABLES): [[index.table for index in some] for some in indexes]}
        if self._settings.centred:
            tables[1, STRETCH_TABLES] = [[index.stretches_table for index in some] for some in indexes]
        if not self._settings.gated:
            tables[1, PAIR_TABLES] = [[table_of(index.pairs) for index in some] for some in indexes]
            tables[1, SECTION_TABLES] = [[table_of(index.sections) for index in some] for some in indexes]
            tables[1, OPENED_TABLES] = [[index.opened_table for index in some] for some in indexes]
        if self._settings.copied_blocks:
            tables[2, TABLES] = [[index.copies_table for index in some] for some in indexes]
        return tables

    def _placing(self, given: Given, keys: Tensor, values: Tensor) -> Task:
        from engine.attention import place_kernels

        q, stands, plan = bits(given.q), self._standing, self.plan
        own, kept = stands.own if self._writes else np.empty((0, 0), np.int64), pool_bits(keys)
        arguments = (
            q, bits(given.k), bits(given.v), stands.rows, self._scales[0], stands.far_turns, stands.own_turns,
            plan.rotation.interleaved, kept, pool_bits(values), own, stands.offsets, plan.size, self.queries, self.far,
            self.weight, self.result,
        )  # fmt: skip
        return place_kernels.shared_place(q.dtype, kept.dtype).task(arguments, self._layout.kv_heads)

    def _looking(self, tables: Tables, room: Floats) -> list[Task]:
        settings, stands, heads, size = self._settings, self._standing, self._layout.kv_heads, self._layout.block_size
        recall, copies = self._kernels
        far, result = (x.reshape(heads, -1, x.shape[3]) for x in (self.far, self.result))  # (H, T * G, D)
        asked, ends = (far, stands.borders), (settings.sink_blocks, stands.ends)
        lying = {key: joined(some[0]) for key, some in tables.items()}
        if settings.gated:
            known = (*lying[1, TABLES], *lying[1, STRETCH_TABLES])
            landmarks = (*asked, *known, *ends, self._tiles_beyond, self.chosen, room)
            return [kernels("landmark").shared_choose().task(landmarks, heads)]
        most = EVERYTHING if settings.few_blocks is None else settings.few_blocks
        reach, pair_reach = settings.reaches(size)
        how = (most, reach, math.log(size), pair_reach)
        estimated = settings.estimate_rest, settings.rest_slopes
        of_pairs = (*lying[1, PAIR_TABLES], *lying[1, SECTION_TABLES], *lying[1, OPENED_TABLES])
        arguments = (*asked, *lying[1, TABLES], *of_pairs, *ends, *how, *estimated, room, self.chosen)
        tasks = [recall.shared_recall().task((*arguments, self.weight, result), heads)]
        if settings.copied_blocks:
            copied = (*asked, *lying[2, TABLES], size, self.chosen, self.fetched, self.weight, result)
            tasks.append(copies.shared_attend().task(copied, heads))
        return tasks

    @property
    def _room_argument(self) -> int:
        """Where the kernels that choose take their room."""
        return 10 if self._settings.gated else 18

    @property
    def _room_shape(self) -> tuple[int, int, int]:
        groups, room = self.queries.shape[2], self.plan.room
        if self._settings.gated:
            rows, room = kernels("landmark").choose_rows(groups), min(room, padded(self._tiles_beyond))
        else:
            rows = self._kernels[0].recall_rows(groups)
        return self._layout.kv_heads, rows, room

    @property
    def _tiles_beyond(self) -> int:
        """Of more blocks than so many only landmarks of the likeliest tiles are looked at."""
        beyond = self._settings.tiles_beyond(self.queries.shape[2])
        return EVERYTHING if beyond is None else beyond

    @property
    def _look_work(self) -> int:
        """Products of each head."""
        looked = self.plan.choosable + self._settings.copied_blocks * self._layout.block_size if self.chooses else 0
        return len(self.plan.positions) * self.queries.shape[2] * looked

    # -- reading ---------------------------------------------------------------------------------------------

    def attend(self, layer: int, given: Given) -> None:
        """One softmax over blocks and what is estimated, to rows of the output."""
        pools, direct = self.pools(layer), True
        if pools is None:
            fixed, direct = self._standing.fixed, False
            count = fixed.shape[1]
            self._numbers[..., :count], self._numbers[..., count:] = fixed, self.chosen[..., : self.fetched]
            located = self.store.locate(layer, self.plan.slots(self._numbers))
            self._places[:] = np.where(self._numbers >= 0, located.at.numpy(), -1)
            pools = located.keys, located.values
        tasks = self._attending([pools], [given], direct=direct)
        work = COLD * len(self.plan.positions) * self.queries.shape[2] * self._numbers.shape[2]
        tasks.do(threads_for(self._layout.kv_heads, work * self._layout.block_size))

    def _attending(self, pools: Sequence[tuple[Tensor, Tensor]], given: Sequence[Given], *, direct: bool) -> Tasks:
        """What `attend` does for each of the layers with such keys and values.

        Args:
            direct: it is for jobs to find out where blocks lie
        """
        task, tasks = int(direct), self._second
        if tasks is None:
            each = [*([self._spotting()] if direct else []), *self._reading(given[0], *pools[0])]
            tasks = self._second = Tasks([InRow(each)], len(given))
        if self._others("read", pools):
            for place, each_pool in zip(POOLS, zip(*pools, strict=True), strict=True):
                tasks.put(task, place, [pool.data_ptr() for pool in each_pool])
        if self._others("output", given):
            tasks.put(task + 1, OUTPUT, [each.output.data_ptr() for each in given])
        if self._others("starts", [self._starts]):
            tasks.put_arrays(task, STARTS, [self._starts])
        return tasks

    def _spotting(self) -> Task:
        from engine.attention import place_kernels

        stands, heads = self._standing, self._layout.kv_heads
        arguments = (stands.fixed, self.chosen, stands.tables, heads, self._numbers, self._places)
        return place_kernels.shared_spot().task(arguments, heads)

    def _reading(self, given: Given, keys: Tensor, values: Tensor) -> list[Task]:
        from engine.attention import attend_kernels, place_kernels

        plan, stands, settings, heads = self.plan, self._standing, self._settings, self._layout.kv_heads
        kept, output = pool_bits(keys), bits(given.output)
        blocks = (plan.size, self._places, self._numbers, stands.turns, self._starts)
        seen = (
            plan.rotation.interleaved,
            settings.gated,
            settings.bounded,
            stands.positions,
            plan.reach.recent,
            self._window,
        )
        arguments = (self.queries, self.far, kept, pool_bits(values), *blocks, *seen, self.weight, self.result)
        attending = attend_kernels.shared_attend(kept.dtype).task(arguments, heads)
        finishing = place_kernels.shared_finish(output.dtype).task((self.result, output, stands.rows), heads)
        return [attending, finishing]

    # -- all layers at once ----------------------------------------------------------------------------------

    def jobs(self, layers: Sequence[int], given: Sequence[Given], scratch: Scratch) -> tuple[Jobs, Jobs]:
        """What these layers do to choose and to attend, for who does it (layers, jobs, JOB_WORDS).

        A tier has pools of each layer, and indexes are in 4 bits. A desk is asked for the same layers always, and the
        jobs are the same arrays: who has them tells the desk of each step and has them do what is new.
        """
        pools = [found for layer in layers if (found := self.pools(layer)) is not None]
        first = self._choosing(layers, given, scratch, looks=self.chooses)
        return first.jobs, self._attending(pools, given, direct=True).jobs

    def pools(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """See Tier.pools."""
        return self.store.tier.pools(layer)

    @property
    def store(self) -> BlockStore:
        """Of the plan's sessions."""
        return self.plan.store

    @property
    def selected(self) -> int:
        """Heads of far blocks that are fetched in a layer."""
        return self._layout.kv_heads * self._standing.selected

    @property
    def ends(self) -> Numbers:
        """The first block of each query that it may not choose any more (T,)."""
        return self._standing.ends

    # -- for others ------------------------------------------------------------------------------------------

    def rows(self, place: int) -> tuple[slice, Rows]:
        """One span's queries, and which they are."""
        plan = self.plan
        mine = slice(*plan.borders[place : place + 2])
        queries, positions = torch.from_numpy(self.queries[:, mine]), torch.from_numpy(plan.positions[mine])
        session = plan.spans[place].session
        return mine, Rows(queries, positions, plan.size, plan.rotation, plan.far_distance[mine], session)


def table_of(index: BlockIndex | None) -> Numbers:
    """Where an index of pairs or sections lies, if there is one."""
    return index.table if index else NO_TABLE


def joined(tables: Sequence[Numbers]) -> tuple[Numbers, Numbers]:
    """Tables (rows, columns) one after the other, and where each begins, and the last one ends (tables + 1,)."""
    return tables[0] if len(tables) == 1 else np.concatenate(tables), np.cumsum([0, *map(len, tables)])


def bits(x: Tensor) -> NDArray[Any]:
    """A tensor as kernels take it: fp32, or the bits of bf16."""
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


def pool_bits(pool: Tensor) -> NDArray[Any]:
    """A cache's tensor (places, B, D) as kernels take it (places * B, D)."""
    return bits(pool.flatten(0, 1))
