"""The same meaning as the reference on a CPU, by kernels that read blocks where they lie.

Where queries stand is worked out once for all layers of a step (`plans`), and each layer asks for two lists of jobs
(`desk`): choose, then attend. Where nobody has to look in between, all layers' lists are handed out beforehand. A span
that is tallied, stopped by a top-p or squashed by a softcap goes the reference's way.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cache import BlockIndex, CacheLayout, Session, Summary, kernels, over_heads
from engine.attention.base import LayerGeometry, Listed, RetrievalSettings
from engine.attention.choosing import Choice
from engine.attention.desk import Desk, Given, Scratch, bits
from engine.attention.exact import Read
from engine.attention.lists import MOST, Kind, Lists, Planned, Seats, different, first_alike
from engine.attention.parts import Scoring, lose
from engine.attention.plans import LANES, Floats, Numbers, Plan, Reach, Standing, padded, sines
from engine.attention.reference import WORKING_BYTES, ReferenceAttention
from engine.attention.summaries import Summaries
from engine.attention.writing import Writing
from engine.step import Span, Step

MOST_READ = 128
"""Blocks that a query reads beside the fetched ones; for more of them matrix products are faster."""
COPIED_SIZES = (16, 32, 64)
"""Positions of blocks whose copies the kernels read."""


class FusedAttention(ReferenceAttention):
    """See the module; arguments as the reference's."""

    def __init__(self, layers: list[LayerGeometry], layout: CacheLayout, settings: RetrievalSettings) -> None:
        assert self.serves(layout, settings), "it would read something else"
        super().__init__(layers, layout, settings)
        self._recall, self._copies = kernels("recall"), kernels("copy")
        self._keeps_scores = settings.landmark_dtype != "int4"
        self._alike = first_alike(layers, settings)
        self._kinds: dict[tuple[int, ...], list[tuple[int, ...]]] = {}  # layers that go through a step alike
        self._starts: dict[int, Floats] = {}  # by layer: cosine and sine of the first position of each block
        self._scratch = Scratch()
        self._summaries = Summaries(layout, settings) if Summaries.serves(settings) else None
        self._lists: dict[object, Lists] = {}  # of steps that were done, by their shapes
        self._warm_up()

    @staticmethod
    def serves(layout: CacheLayout, settings: RetrievalSettings) -> bool:
        """Whether the kernels know such a cache and such settings."""
        known = settings.landmarks == "moments" and settings.landmark_dtype == "int4"
        known = known or (settings.gated and not settings.estimate_rest)
        known = known and settings.landmarks_per_block == 1 and not settings.outlier_blocks
        known = known and (not settings.copied_blocks or layout.block_size in COPIED_SIZES)
        return known and layout.dtype in (torch.float32, torch.bfloat16) and layout.head_dim % LANES == 0

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step, scaling: float, softcap: float | None
    ) -> Tensor:
        asked = q.dtype
        q, k, v = alike(q, k, v)
        scoring, groups = self._scoring(layer, softcap), q.shape[1] // self.layout.kv_heads
        planned = self._planned(layer, step, groups, squashed=softcap is not None)
        given = Given(q, k, v, self._scale(layer, step, scaling, q.device), torch.empty_like(q))
        for span, rows, seats in planned.alone:
            if seats is None:
                self.store(layer, span, k[rows], v[rows])
                super()._attend(layer, span, q[rows].float() * given.scale_of(rows), scoring, step, given.output[rows])
                continue
            self._write(layer, span, seats, given, rows)
            for desk in self._seated(layer, seats, groups, writes=False):
                self._read(layer, desk, given, scoring, step)
        for desk in self._seated(layer, planned.together, groups):
            self._read(layer, desk, given, scoring, step)
            for span in desk.plan.spans:
                self._index_filled([layer], span)
        self._foresight.hint(layer, step.spans)
        return given.output.to(asked)

    # -- all layers at once ----------------------------------------------------------------------------------

    def listed(
        self, scalings: Mapping[int, float], q: Tensor, k: Tensor, v: Tensor, output: Tensor, step: Step
    ) -> Listed | None:
        """See `Attention.listed`."""
        groups = q.shape[1] // self.layout.kv_heads
        kinds = []
        for layers in self._grouped(tuple(scalings)):
            planned = self._planned(layers[0], step, groups, squashed=False)
            if not self._plain(layers, planned):
                return None
            kinds.append(Kind(layers, planned.together.plans))
        scales: Mapping[int, float | Tensor] = scalings
        if any(self.layers[layer].temperature for layer in scalings):
            scales = {layer: self._scale(layer, step, scaling, q.device) for layer, scaling in scalings.items()}
        shape = q.dtype, groups, *((kind.layers, *(plan.shape for plan in kind.plans)) for kind in kinds)
        lists = self._laid(shape, kinds, groups)
        jobs = lists.jobs(kinds, scales, (q, k, v, output), self._scratch)

        def done() -> None:
            step.report.retrieval_seconds += lists.watch.taken()
            for kind, desks in zip(kinds, lists.desks, strict=True):
                for desk in desks:
                    self._count(desk, step, len(kind.layers))
            for span in step.spans:
                self._index_filled(scalings, span)
            lists.leave()
            self._keep(shape, lists)

        return Listed(jobs, done)

    def _grouped(self, layers: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Those of them together that go through a step alike."""
        known = self._kinds.get(layers)
        if known is None:
            kinds: dict[object, list[int]] = {}
            for layer in layers:
                kinds.setdefault((self._alike[layer], self._looks(layer)), []).append(layer)
            known = self._kinds[layers] = [tuple(kind) for kind in kinds.values()]
        return known

    def _laid(self, shape: object, kinds: Sequence[Kind], groups: int) -> Lists:
        """Lists of jobs for such plans: those of an earlier step, which nobody else has meanwhile, or new ones."""
        lists = self._lists.pop(shape, None)
        plans = different(kinds)
        if lists is None:
            stands = {id(plan): self._stands(plan) for plan in plans}
            seats = [[(kind.layers[0], plan, stands[id(plan)], groups) for plan in kind.plans] for kind in kinds]
            return Lists([tuple(self._desk(*seat) for seat in each) for each in seats], list(stands.values()))
        for plan, standing in zip(plans, lists.standings, strict=True):
            standing.take(plan)
        for kind, desks in zip(kinds, lists.desks, strict=True):
            for plan, desk in zip(kind.plans, desks, strict=True):
                desk.take(plan, self._starts_for(kind.layers[0], plan))
        return lists

    def _keep(self, shape: object, lists: Lists) -> None:
        self._lists[shape] = lists
        while len(self._lists) > MOST:
            self._lists.pop(next(iter(self._lists)), None)

    def _plain(self, layers: Sequence[int], planned: Planned) -> bool:
        """Whether layers of a kind go through a step without anybody looking between choosing and attending."""
        if planned.alone or any(self.layers[layer].void is not None for layer in layers):
            return False
        for plan in planned.together.plans:
            looks = self._looks(layers[0]) and plan.reach.fetch is not None
            if plan.store.tier.pools(layers[0]) is None or (self._keeps_scores and looks):
                return False
            if any(span.audit_rate and span.samples for span in plan.spans):
                return False
        return True

    def _write(self, layer: int, span: Span, seats: Seats, given: Given, rows: slice) -> None:
        """As `store`, by a kernel where a tier has pools."""
        pools, index = span.session.store.tier.pools(layer), span.session.indexes[layer]
        if pools is None:
            self.store(layer, span, given.k[rows], given.v[rows])
            return
        if seats.writing is None:
            both = zip(seats.plans, self._standing(seats), strict=True)
            seats.writing = Writing(list(both), given, pools)
        seats.writing.do(given, pools)
        if index is not None:
            self._index(layer, span.session, index, (span.first + len(span.token_ids)) // self.layout.block_size)

    def _standing(self, seats: Seats) -> tuple[Standing, ...]:
        seats.standings = seats.standings or tuple(self._stands(plan) for plan in seats.plans)
        return seats.standings

    def _seated(self, layer: int, seats: Seats, groups: int, *, writes: bool = True) -> tuple[Desk, ...]:
        """Desks of a step whose layers come one after the other."""
        looks = self._looks(layer)
        if looks not in seats.desks:
            both = zip(seats.plans, self._standing(seats), strict=True)
            seats.desks[looks] = tuple(self._desk(layer, *each, groups, writes=writes) for each in both)
        return seats.desks[looks]

    def _index_filled(self, layers: Iterable[int], span: Span) -> None:
        """Index the block that a short span has filled, if it has."""
        end, size = span.first + len(span.token_ids), self.layout.block_size
        if end // size > span.first // size:
            for layer in layers:
                index = span.session.indexes[layer]
                if index is not None:
                    self._index(layer, span.session, index, end // size)

    def _summary(self, layer: int, session: Session, index: BlockIndex, slots: Tensor) -> Summary:
        if self._summaries is None:
            return super()._summary(layer, session, index, slots)
        return self._summaries.of(session.store, layer, slots, index.count, self.layers[layer].rotation)

    # -- planning --------------------------------------------------------------------------------------------

    def _planned(self, layer: int, step: Step, groups: int, *, squashed: bool) -> Planned:
        """How a layer goes through a step; those that read alike share it."""
        alike = self._alike[layer], groups, squashed
        known = step.shared.get(alike)
        if known is None:
            known = step.shared[alike] = self._plan(layer, step, groups, squashed=squashed)
        assert isinstance(known, Planned)
        return known

    def _plan(self, layer: int, step: Step, groups: int, *, squashed: bool) -> Planned:
        alone: list[tuple[Span, slice, Seats | None]] = []
        together: dict[Reach, list[tuple[slice, Span]]] = {}
        start, spans_of = 0, Counter(id(span.session) for span in step.spans)
        for span in step.spans:
            rows = slice(start, start + len(span.token_ids))
            start = rows.stop
            if squashed or not self._serves(layer, span):
                alone.append((span, rows, None))
            elif spans_of[id(span.session)] > 1 or not self._short(span):
                alone.append((span, rows, Seats(tuple(self._pieces(layer, span, rows, groups)))))
            else:
                reach = self._reach(layer, span, span.first // self.layout.block_size)
                together.setdefault(reach, []).append((rows, span))
        plans = [plan for reach, found in together.items() for plan in self._at_once(layer, reach, found)]
        return Planned(tuple(alone), Seats(tuple(plans)))

    def _pieces(self, layer: int, span: Span, rows: slice, groups: int) -> Iterator[Plan]:
        """The queries of one span, as many at once as working memory and tier bear."""
        positions = np.arange(span.first, span.first + len(span.token_ids))
        piece = self._few_enough(layer, span, groups)
        for start in range(0, len(positions), piece):
            mine = positions[start : start + piece]
            reach = self._reach(layer, span, int(mine[-1]) // self.layout.block_size)
            at = slice(rows.start + start, rows.start + start + len(mine))
            yield self._stand(layer, at, (span,), mine, reach)

    def _short(self, span: Span) -> bool:
        """Whether it is one position, or a token and the landmark that closes its block."""
        size, count = self.layout.block_size, len(span.token_ids)
        return count == 1 or (count == 2 and span.first % size == size - 2)

    def _at_once(self, layer: int, reach: Reach, found: list[tuple[slice, Span]]) -> Iterator[Plan]:
        """Queries of short spans, given with their rows, as many at once as the tier bears."""
        each = found[0][1].session.store.tier.window // (self.layout.kv_heads * reach.blocks)
        most = max(1, each // max(rows.stop - rows.start for rows, _ in found))
        for begin in range(0, len(found), most):
            rows, spans = zip(*found[begin : begin + most], strict=True)
            at = [row for some in rows for row in range(some.start, some.stop)]
            side_by_side = at[-1] - at[0] == len(at) - 1
            positions = [span.first + i for span in spans for i in range(len(span.token_ids))]
            where = slice(at[0], at[-1] + 1) if side_by_side else torch.tensor(at)
            yield self._stand(layer, where, spans, np.array(positions), reach)

    def _stand(
        self, layer: int, rows: slice | Tensor, spans: tuple[Span, ...], positions: Numbers, reach: Reach
    ) -> Plan:
        rotation, size = self.layers[layer].rotation, self.layout.block_size
        return Plan(rows, spans, positions, reach, rotation, size, self.settings.bounded)

    def _stands(self, plan: Plan) -> Standing:
        return Standing(plan, self.layout.kv_heads, self.settings.sink_blocks)

    def _desk(self, layer: int, plan: Plan, standing: Standing, groups: int, *, writes: bool = True) -> Desk:
        chooses, window, starts = self._looks(layer), self.layers[layer].window, self._starts_for(layer, plan)
        return Desk(plan, standing, self.layout, self.settings, groups, window, starts, chooses=chooses, writes=writes)

    def _looks(self, layer: int) -> bool:
        """Whether a layer looks at landmarks where it has a choice: in the first one of a gated model all are alike."""
        return not (self.settings.gated and layer == 0)

    def _starts_for(self, layer: int, plan: Plan) -> Floats:
        return self._block_starts(layer, plan.last + 1)

    def _serves(self, layer: int, span: Span) -> bool:
        """Whether a span asks for nothing that kernels do not know, and reads what a tier can locate at once."""
        if span.tally is not None or span.top_p is not None:
            return False
        reach = self._reach(layer, span, span.session.layout.blocks(span.end) - 1)
        located = self.layout.kv_heads * reach.blocks
        return reach.recent + reach.shared <= MOST_READ and located <= span.session.store.tier.window

    def _reach(self, layer: int, span: Span, last: int) -> Reach:
        """What a query in block `last` reads."""
        recent, sinks = self._recent(layer), self.settings.sink_blocks
        far_blocks = 0 if self.layers[layer].window else max(0, last - recent)
        fetch = self._fetches(layer, span, far_blocks)
        if self._chooses(layer, span, far_blocks - sinks, fetch):
            return Reach(recent, min(far_blocks, sinks), fetch)
        return Reach(recent, min(far_blocks, sinks if fetch == 0 else far_blocks), None)

    def _few_enough(self, layer: int, span: Span, groups: int) -> int:
        """How many queries to take at once: their scores fit into working memory, their blocks into the tier's."""
        last = span.session.layout.blocks(span.end)
        reach, heads = self._reach(layer, span, last), self.layout.kv_heads
        scores = 4 * heads * groups * last if self._keeps_scores else 1
        located = span.session.store.tier.window // (heads * reach.blocks)
        return max(
            1, min(located, WORKING_BYTES // scores if reach.fetch is not None else located, len(span.token_ids))
        )

    def _read(self, layer: int, desk: Desk, given: Given, scoring: Scoring, step: Step) -> None:
        """One softmax over near, sink and fetched blocks, and the rest, to rows of what is given back."""
        reach = desk.plan.reach
        begun = time.perf_counter()
        desk.choose(layer, given, self._scratch, by_scores=self._keeps_scores)
        if self._keeps_scores and desk.chooses:
            self._choose_by_scores(layer, desk)
        if reach.fetch is not None:
            self._remember(layer, desk.plan, desk.chosen[..., : reach.fetch])
            step.report.retrieval_seconds += time.perf_counter() - begun
        if scoring.void is not None:
            lose(scoring.void, desk.weight, torch.from_numpy(desk.result))
        desk.attend(layer, given)
        self._audit_spans(layer, desk, scoring, step)
        self._count(desk, step)

    def _count(self, desk: Desk, step: Step, layers: int = 1) -> None:
        """Report what so many layers read."""
        step.report.queries += layers * self.layout.kv_heads * len(desk.plan.positions)
        if desk.plan.reach.fetch is not None:
            step.report.count(layers * desk.selected, desk.store)

    def _remember(self, layer: int, plan: Plan, fetched: Numbers) -> None:
        """Tell what each span's last query fetches, of (H, T, K)."""
        if plan.spans[0].session.store.foresees:
            for span, end in zip(plan.spans, plan.borders[1:], strict=True):
                blocks = torch.from_numpy(fetched[:, end - 1]).clamp(min=0)
                self._foresight.remember(layer, span.session, blocks)

    def _audit_spans(self, layer: int, desk: Desk, scoring: Scoring, step: Step) -> None:
        reach = desk.plan.reach
        for place, span in enumerate(desk.plan.spans):
            if span.audit_rate and span.samples:
                mine, rows = desk.rows(place)
                taken = None if reach.fetch is None else torch.from_numpy(desk.chosen[:, mine])
                choice = None if taken is None else Choice(taken.clamp(min=0), taken >= 0)
                self._audit(layer, rows, span, step, scoring, Read(reach.recent, reach.shared, choice))

    def _choose_by_scores(self, layer: int, desk: Desk) -> None:
        """By products with landmarks that are kept in fp32, of one span after the other."""
        plan, groups, far = desk.plan, desk.far.shape[2], torch.from_numpy(desk.far).flatten(1, 2)
        for index, first, last in zip(desk.indexes(layer), plan.borders[:-1], plan.borders[1:], strict=True):
            chosen = np.ascontiguousarray(desk.chosen[:, first:last])
            looking = far[:, first * groups : last * groups].contiguous()
            self._best_scored(index, looking, desk.ends[first:last], chosen)
            desk.chosen[:, first:last] = chosen

    def _best_scored(self, index: BlockIndex, looking: Tensor, ends: Numbers, chosen: Numbers) -> None:
        """The best blocks for queries (H, T * G, W) of one session; see `choose` in the kernels."""
        count, sinks = max(0, int(ends.max())), self.settings.sink_blocks
        scores = torch.from_numpy(self._scratch.of(len(looking), looking.shape[1] + 1, padded(count)))
        products, room = scores[:, :-1].contiguous(), scores[:, -1].contiguous().numpy()

        def work(some: slice) -> None:
            index.fill(looking, products[None, ..., :count], some)
            self._recall.choose(products.numpy(), sinks, ends, chosen, room, some.start, some.stop)

        over_heads(work, len(looking), products[0].numel())

    def _block_starts(self, layer: int, blocks: int) -> Floats:
        """Cosine and sine of the first position of blocks 0, 1, … (2, at least so many, R)."""
        known = self._starts.get(layer)
        if known is None or known.shape[1] < blocks:
            rotation = self.layers[layer].rotation
            count = 1 << max(8, (blocks - 1).bit_length())
            known = sines(rotation, np.arange(count) * self.layout.block_size)
            for other, geometry in enumerate(self.layers):  # most layers turn alike
                if geometry.rotation is rotation:
                    self._starts[other] = known
        return known

    def _warm_up(self) -> None:
        """Compile now, or load what an earlier start compiled, rather than in somebody's first request."""
        from engine.attention import attend_kernels, clock_kernels, place_kernels, stand_kernels

        kept = bits(torch.zeros(1, dtype=self.layout.dtype)).dtype
        attend_kernels.shared_attend(kept)
        place_kernels.shared_place(kept, kept)
        place_kernels.shared_spot()
        place_kernels.shared_finish(kept)
        clock_kernels.shared_clock()
        kernels("team").warm_up()
        stand_kernels.warm_up()
        kernels("joining").in_row()
        if self._keeps_scores:
            room, blocks = np.zeros((1, 1, 5 * LANES), np.float32), np.zeros((1, 1, 1), np.int64)
            self._recall.choose(room, 0, np.zeros(1, np.int64), blocks, room[0], 0, 1)
        elif self.settings.gated:
            kernels("landmark").shared_choose()
        else:
            self._recall.shared_recall()
        if self.settings.copied_blocks:
            self._copies.shared_attend()


def alike(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as kernels take them: contiguous, and all of them fp32 or all bf16."""
    types = {q.dtype, k.dtype, v.dtype}
    if types != {torch.bfloat16}:
        q, k, v = q.float(), k.float(), v.float()
    return q.contiguous(), k.contiguous(), v.contiguous()
