"""What a query reads, against attention computed key by key: rules, outliers, top-p, the rest, dense layers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cache import PAIR, RULES, SECTION, outlying, pairs_opened, slopes
from cache.sections import PAIRS, Gathered
from cache.usual import BEGINNING, Usual, usual
from engine import InvalidParameter, RetrievalSettings, Step
from tests.engine.test_families import full_attention
from tests.models import Bench, random_tokens

SIZE, RECENT, SINKS, LENGTH = 8, 1, 1, 120
CONFIG: dict[str, Any] = {
    "block_size": SIZE, "recent_blocks": RECENT, "sink_blocks": SINKS, "landmark_dtype": "float32"
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {"landmarks": "mean"},
    "box, four landmarks": {"landmarks": "box", "landmarks_per_block": 4},
    "clusters": {"landmarks": "clusters", "landmarks_per_block": 2},
    "outliers": {"landmarks": "box-mean", "outlier_blocks": 2},
    "top-p of the attention": {"landmarks": "moments", "retrieval_top_p": 0.7},
    "top-p of the landmarks": {"landmarks": "box", "retrieval_top_p": 0.5, "least_blocks": 2},
    "moments": {"landmarks": "moments"},
    "rest": {"landmarks": "mean", "estimate_rest": True},
    "rest of moments": {"landmarks": "moments", "estimate_rest": True},
    "rest without slopes": {"landmarks": "mean", "estimate_rest": True, "rest_slopes": False},
    "rest of clusters": {"landmarks": "clusters", "landmarks_per_block": 4, "estimate_rest": True},
    "rest of box-mean": {"landmarks": "box-mean", "estimate_rest": True, "retrieval_top_p": 0.9},
    "rest by sections": {"landmarks": "moments", "estimate_rest": True, "own_values": 0},
    "rest by sections behind few blocks": {"landmarks": "moments", "estimate_rest": True, "own_values": 80},
    "rest by random features": {"landmarks": "performer", "estimate_rest": True},
    "combiner": {"landmarks": "combiner"},
    "copies": {"landmarks": "moments", "copied_blocks": 2, "estimate_rest": True},
    "copies, top-p": {"landmarks": "box", "copied_blocks": 3, "outlier_blocks": 1, "retrieval_top_p": 0.6},
    "everything": {
        "landmarks": "moments", "landmarks_per_block": 2, "outlier_blocks": 1, "retrieval_top_p": 0.8,
        "estimate_rest": True, "dense_layers": 1, "copied_blocks": 1,
    },
}  # fmt: skip


class Oracle:
    """One layer's attention for each query and head in turn, from whole keys and values; no blocks are cached.

    Args:
        keys, values: true keys (heads, tokens, dim) at their absolute positions
        k: blocks per head
    """

    def __init__(self, keys: Tensor, values: Tensor, settings: RetrievalSettings, k: int) -> None:
        self.keys, self.values, self.settings, self.k = keys, values, settings, k
        self.weights, self.closed = dict[int, Tensor](), set[int]()

    def __call__(self, queries: Tensor, at: int) -> Tensor:
        """Output (groups, dim) of the scaled queries (groups, dim) of KV head 0 at a position."""
        own = at // SIZE
        far = list(range(SINKS, max(SINKS, own - RECENT)))
        always = [b for b in range(own + 1) if b < SINKS or b >= own - RECENT]
        blocks = self._blocks(far)
        self.weights, self.closed = (
            self._judged(queries, far, own - RECENT) if self._many(own - RECENT) else ({}, set())
        )
        chosen = self._chosen(queries, at, far, blocks, always)
        terms, values = [], []
        for b in always + chosen:
            inside = slice(b * SIZE, min((b + 1) * SIZE, at + 1))
            scores = queries @ self.keys[inside].T
            if b in chosen and self.settings.rule.replaces_mass:
                mass = self._mass(queries, blocks[far.index(b)][None], own, b)
                scores = scores - scores.logsumexp(-1, keepdim=True) + mass
            terms.append(scores)
            values.append(self.values[inside])
        if self.settings.estimate_rest:
            for b in set(far) - set(chosen):
                terms.append(self._mass(queries, blocks[far.index(b)][None], own, b))
                values.append(self._mean_value(queries, *self._shared(b, own - RECENT)))
        wide = [value.expand(len(queries), -1, -1) for value in values]  # (groups, keys, dim)
        return torch.einsum("gk,gkd->gd", torch.cat(terms, -1).softmax(-1), torch.cat(wide, 1))

    def _many(self, end: int) -> bool:
        """Whether a query that chooses blocks before this one has many."""
        return self.settings.own_values is not None and end >= max(self.settings.own_values + 1, BEGINNING)

    def _shared(self, block: int, end: int) -> tuple[int, int]:
        """The blocks whose mean value stands for a block that is not read."""
        first = block // SECTION * SECTION
        pooled = self._many(end) and first >= SINKS and first + SECTION <= end
        return (first, first + SECTION) if pooled else (block, block + 1)

    def _mean_value(self, queries: Tensor, first: int, last: int) -> Tensor:
        """The value (groups, 1, dim) that stands for blocks which are not read."""
        keys, values = (x[first * SIZE : last * SIZE].unflatten(0, (-1, SIZE)) for x in (self.keys, self.values))
        mean = values.mean((0, 1))[None, None]
        if not self.settings.rest_slopes:
            return mean
        along, turn = slopes(keys, values)
        if last - first == SECTION:  # what that is worth tells tests/cache/test_sections.py
            section, known = self._gathered(first, last).together(PAIR).together(PAIRS), self._usual
            mean, turn = (known.widened(known.of_values(each[0])) for each in (section.values, section.turning))
            along = known.of_keys(section.along[0]) @ known.keys[0].T
        return mean + (queries @ along.flatten())[:, None, None] * turn.flatten()

    def _gathered(self, first: int, last: int) -> Gathered:
        """What blocks first, …, last - 1 are like."""
        keys, values = (x[first * SIZE : last * SIZE].unflatten(0, (-1, SIZE)) for x in (self.keys, self.values))
        along, turn = slopes(keys, values)
        left = (keys.var(1, correction=0) - along.square()).clamp(min=0)
        return Gathered(*(x[None] for x in (keys.mean(1), left, values.mean(1), along, turn)))

    @functools.cached_property
    def _usual(self) -> Usual:
        """What that is tells tests/cache/test_sections.py."""
        return usual(self._gathered(0, BEGINNING))

    def _judged(self, queries: Tensor, far: list[int], end: int) -> tuple[dict[int, Tensor], set[int]]:
        """What a position of each of many blocks is estimated to weigh (groups,), and which blocks are closed."""

        known = self._usual
        directions = known.keys[0] @ known.keys[0].T

        def weight(stats: Gathered, count: int, queries: Tensor = queries) -> Tensor:
            """Of the only member of a group."""
            products = torch.stack((queries @ stats.means[0, 0], variance(stats), queries @ stats.along[0, 0]), -1)
            return RULES["moments"].judge(products, count)[1]

        def variance(stats: Gathered) -> Tensor:
            return stats.variances[0, 0].amax() * (queries.square() @ known.profile[0])

        of_blocks, of_pairs = dict[int, Tensor](), dict[int, Tensor]()
        for block in far:
            first = block // SECTION * SECTION
            of_blocks[block] = weight(self._gathered(block, block + 1), SIZE)
            if first >= SINKS and first + SECTION <= end:
                pair = block // PAIR
                both = self._gathered(PAIR * pair, PAIR * pair + PAIR).together(PAIR)
                of_pairs[pair] = weight(both, PAIR * SIZE, queries @ directions)
        if not of_pairs:
            return of_blocks, set()
        wanted = torch.stack(list(of_pairs.values()), -1).softmax(-1).mean(0).tolist()
        best = sorted(zip(wanted, of_pairs, strict=True), reverse=True)[pairs_opened(self.k) :]
        closed = {PAIR * pair + i for _, pair in best for i in range(PAIR)}
        return of_blocks | {block: of_pairs[block // PAIR] for block in closed}, closed

    def _blocks(self, far: list[int]) -> Tensor:
        """Keys of the far blocks (blocks, SIZE, dim)."""
        return torch.stack([self.keys[b * SIZE : (b + 1) * SIZE] for b in far]) if far else self.keys[:0]

    def _scores(self, queries: Tensor, keys: Tensor, own: int, first: int, *, mass: bool = False) -> Tensor:
        """Scores (groups, blocks) by the rule, which tests/cache/test_landmarks.py checks."""
        if mass and self.weights:
            return torch.stack([self.weights[block] for block in range(first, first + len(keys))], -1)
        rule, count = self.settings.rule, self.settings.landmarks_per_block
        widths = rule.widths(keys.shape[-1])
        landmarks = rule.landmarks(keys[None], first, count)[0].split(widths, -1)
        looking = rule.look(queries[None, None], torch.tensor([own]))[0, 0].split(widths, -1)
        products = [torch.einsum("gw,nmw->gnm", q, k) for q, k in zip(looking, landmarks, strict=True)]
        if self._sloped and count == 1:
            along = slopes(keys, torch.zeros_like(keys))[0]  # (blocks, dim)
            products[1] = products[1] - (queries.square() @ along.square().T)[..., None]
        if self._sloped and count == 1:
            along = slopes(keys, torch.zeros_like(keys))[0]
            products[1] = products[1] + (queries @ along.T)[..., None].square()
        return rule.join(rule.judge(torch.stack(products, -1), SIZE // count)[mass])

    @property
    def _sloped(self) -> bool:
        return self.settings.rule.knows_slopes and self.settings.estimate_rest and self.settings.rest_slopes

    def _mass(self, queries: Tensor, keys: Tensor, own: int, first: int) -> Tensor:
        return self.settings.rule.log_mass(self._scores(queries, keys, own, first, mass=True), SIZE)

    def _chosen(self, queries: Tensor, at: int, far: list[int], blocks: Tensor, always: list[int]) -> list[int]:
        settings, own = self.settings, at // SIZE
        if not far:
            return []
        scores = self._scores(queries, blocks, own, SINKS, mass=self._many(own - RECENT))  # (groups, blocks)
        wanted = scores.softmax(-1).mean(0).tolist()
        forced = sorted(range(len(far)), key=lambda i: -float(outlying(blocks)[i]))[: settings.outlier_blocks]
        most = self.k + settings.outlier_blocks + settings.copied_blocks
        open_ = [i for i in range(len(far)) if far[i] not in self.closed]
        order = sorted(open_, key=lambda i: (i not in forced, -wanted[i]))[:most]
        if settings.top_p is not None:
            weights, covered = scores.softmax(-1).mean(0), 0.0
            if settings.rule.estimates_mass:
                read = torch.cat([queries @ self.keys[b * SIZE : min((b + 1) * SIZE, at + 1)].T for b in always], -1)
                near = read.logsumexp(-1, keepdim=True)
                mass = self._mass(queries, blocks, own, SINKS)
                weights = torch.cat((near, mass), -1).softmax(-1)[:, 1:].mean(0)
                covered = 1 - float(weights.sum())
            kept: list[int] = []
            for i in sorted(order, key=lambda i: -float(weights[i])):
                if covered < settings.top_p or len(kept) < settings.least_blocks:
                    kept.append(i)
                covered += float(weights[i])
            order = kept
        return [far[i] for i in order]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("fused", [False, True])
def test_one_layer_agrees_with_attention_key_by_key(name: str, fused: bool, one_layer: Path) -> None:
    options = OPTIONS[name] | {"dense_layers": 0}
    positions = "bounded" if fused else "absolute"
    bench = Bench(one_layer, fused=fused, positions=positions, **CONFIG, **options)
    taken = Recorded(bench)
    session, closed = bench.session(), 0
    length, fetch = (760, 1) if "own_values" in options else (LENGTH, 3)
    bench.logits(session, random_tokens(length), [50, 1, length - 51], fetch=fetch)
    for at in range(0, length, 7):
        keys, values, queries = taken.seen_from(at, bounded=fused)
        oracle = Oracle(keys, values, bench.settings, fetch)
        expected, closed = oracle(queries, at), closed + len(oracle.closed)
        torch.testing.assert_close(taken.output[at, :2], expected, atol=2e-4, rtol=2e-4, msg=f"position {at}")
    assert (closed > 0) == ("own_values" in options)


class Recorded:
    """Queries, keys, values and outputs that went through the only layer of a bench, of KV head 0."""

    def __init__(self, bench: Bench) -> None:
        self.rotation = bench.model.layers[0].rotation
        self.q, self.k, self.v = (torch.empty(0, 2, 16) for _ in range(3))
        self.output = torch.empty(0, 4, 16)
        self._attention, bench.runner._attention = bench.runner._attention, self

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step, scaling: float, softcap: float | None
    ) -> Tensor:
        output = self._attention(layer, q, k, v, step, scaling, softcap)
        self.q = torch.cat((self.q, q[:, :2] * scaling))
        self.k, self.v = torch.cat((self.k, k)), torch.cat((self.v, v))
        self.output = torch.cat((self.output, output))
        return output

    def listed(self, *given: object) -> None:
        """Every layer is recorded."""

    def seen_from(self, at: int, *, bounded: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (tokens, dim) of head 0 and queries (2, dim), as the query at a position sees them."""
        positions, origin = torch.arange(len(self.k)), 0
        stands = positions
        if bounded:  # every far block stands just before the recent ones, and that is where positions count from
            origin = (at // SIZE - RECENT - 1) * SIZE
            far = positions // SIZE < at // SIZE - RECENT
            stands = torch.where(far, origin + positions % SIZE, positions)
        keys = self.rotation(self.k[:, 0], stands - origin)
        return keys, self.v[:, 0], self.rotation(self.q[at], torch.full((2,), at - origin))


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.models import save_model

    return save_model("llama", tmp_path_factory.mktemp("one") / "layer", num_hidden_layers=1)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("fused", [False, True])
def test_any_cut_gives_the_same_logits(name: str, fused: bool, tiny_folder: Path) -> None:
    bench = Bench(tiny_folder, fused=fused, positions="bounded", **CONFIG, **OPTIONS[name])
    length, fetch = (760, 1) if "own_values" in OPTIONS[name] else (LENGTH, 2)
    whole = bench.logits(bench.session(), random_tokens(length), [length], fetch=fetch)
    parts = bench.logits(bench.session(), random_tokens(length), [30, *[1] * 20, length - 50], fetch=fetch)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "combiner"])
def test_fetching_every_block_is_full_attention(name: str, tiny_folder: Path) -> None:
    options = OPTIONS[name] | {"retrieval_top_p": None}
    bench = Bench(tiny_folder, **CONFIG, **options)
    logits = bench.logits(bench.session(), random_tokens(LENGTH), [60, 60], fetch=20)
    torch.testing.assert_close(logits, full_attention(tiny_folder, random_tokens(LENGTH)), atol=1e-4, rtol=1e-4)


def test_with_all_layers_dense_nothing_is_left_out(tiny_folder: Path) -> None:
    bench = Bench(tiny_folder, **CONFIG, dense_layers=3)
    session = bench.session()
    logits = bench.logits(session, random_tokens(LENGTH), [60, 60], fetch=0)
    assert session.indexes == [None] * 3
    torch.testing.assert_close(logits, full_attention(tiny_folder, random_tokens(LENGTH)), atol=1e-4, rtol=1e-4)


def test_the_rest_is_worth_estimating(tiny_folder: Path) -> None:
    """Reading two blocks and estimating the others is nearer to full attention than reading two blocks alone."""
    expected = full_attention(tiny_folder, random_tokens(LENGTH)).log_softmax(-1)
    errors = []
    for rest in (False, True):
        bench = Bench(tiny_folder, **CONFIG, landmarks="clusters", landmarks_per_block=4, estimate_rest=rest)
        logits = bench.logits(bench.session(), random_tokens(LENGTH), [LENGTH], fetch=2)
        errors.append(float((expected.exp() * (expected - logits.log_softmax(-1))).sum(-1).mean()))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("fused", [False, True])
def test_landmarks_in_four_bits_read_nearly_the_same(fused: bool, tiny_folder: Path) -> None:
    logits = []
    for kind in ("float32", "int4"):
        bench = Bench(tiny_folder, fused=fused, positions="bounded", **CONFIG | {"landmark_dtype": kind})
        logits.append(bench.logits(bench.session(), random_tokens(LENGTH), [LENGTH - 9, *[1] * 9], fetch=8))
    assert (logits[0] != logits[1]).any()
    assert float((logits[1] - logits[0]).abs().mean()) < 0.01 * float(logits[0].std())


@pytest.mark.parametrize("positions", ["absolute", "bounded"])
def test_copies_are_keys_and_values_in_four_bits(positions: str, one_layer: Path) -> None:
    """With nothing fetched and all copied, attention is exact over far keys and values that were rounded."""
    bench = Bench(one_layer, positions=positions, **CONFIG | {"landmark_dtype": "int4", "copied_blocks": 99})
    taken, session = Recorded(bench), bench.session()
    bench.logits(session, random_tokens(LENGTH), [50, 1, LENGTH - 51], fetch=0)
    for at in range(5, LENGTH, 11):
        keys, values, queries = taken.seen_from(at, bounded=positions == "bounded")
        blocks = torch.arange(at + 1) // SIZE
        far = ((blocks >= SINKS) & (blocks < at // SIZE - RECENT))[:, None]
        stored = bench.model.layers[0].rotation(taken.k[:, 0], torch.arange(len(taken.k)) % SIZE)
        if positions == "absolute":
            read = torch.where(far, in_four_bits(keys[: at + 1]), keys[: at + 1])
            scores = queries @ read.T
        else:
            aside = bench.model.layers[0].rotation(taken.q[at], torch.full((2,), (RECENT + 1) * SIZE + at % SIZE))
            scores = torch.where(far.T, aside @ in_four_bits(stored[: at + 1]).T, queries @ keys[: at + 1].T)
        weighed = torch.where(far, in_four_bits(values[: at + 1]), values[: at + 1])
        torch.testing.assert_close(taken.output[at, :2], scores.softmax(-1) @ weighed, atol=2e-4, rtol=2e-4)


def in_four_bits(rows: Tensor) -> Tensor:
    scales = rows.abs().amax(-1, keepdim=True) / 7
    return (rows / scales).round() * scales


@pytest.mark.parametrize("name", ["copies", "everything"])
def test_copies_go_with_forks(name: str, tiny_folder: Path) -> None:
    """A fork reads its parent's copies and adds its own."""
    bench = Bench(tiny_folder, **CONFIG, **OPTIONS[name])
    whole = bench.logits(bench.session(), random_tokens(LENGTH), [LENGTH], fetch=2)
    parent = bench.session("parent")
    bench.logits(parent, random_tokens(60), [60], fetch=2)
    fork = parent.fork("fork")
    bench.logits(parent, [1] * 20, [20], fetch=2)
    rest = bench.logits(fork, random_tokens(LENGTH)[len(fork.tokens) :], [9, LENGTH - 65], fetch=2)
    torch.testing.assert_close(rest, whole[56:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("settings", "said"), [
    ({"copied_blocks": -1}, "copied_blocks"),
    ({"landmarks": "random", "copied_blocks": 1}, "does not look"),
    ({"retrieval_top_p": 1.5}, "retrieval_top_p"),
    ({"retrieval_top_p": 0.0}, "retrieval_top_p"),
    ({"landmarks": "psychic"}, "must be one of"),
    ({"block_size": 1}, "block_size"),
    ({"blocks_per_head": -1}, "blocks_per_head"),
    ({"landmarks_per_block": 3, "block_size": 8}, "must divide"),
    ({"landmarks": "box", "estimate_rest": True}, "does not estimate"),
    ({"landmarks": "random", "retrieval_top_p": 0.9}, "does not look"),
    ({"dense_layers": -1}, "dense_layers"),
    ({"landmark_dtype": "int3"}, "landmark_dtype"),
    ({"landmarks": "performer", "landmark_dtype": "int4"}, "do not bear rounding"),
    ({"outlier_blocks": -1}, "outlier_blocks"),
    ({"own_values": -1}, "own_values"),
    ({"landmarks": "mean", "estimate_rest": True, "own_values": 8}, "own_values: needs"),
    ({"estimate_rest": False, "own_values": 8}, "own_values: needs"),
    ({"estimate_rest": True, "rest_slopes": False, "own_values": 8}, "own_values: needs"),
    ({"landmarks": "trained"}, "no trained landmarks"),
])  # fmt: skip
def test_settings_without_sense_are_refused(settings: dict[str, Any], said: str, tiny_folder: Path) -> None:
    with pytest.raises(InvalidParameter, match=said):
        Bench(tiny_folder, **settings)


@pytest.mark.parametrize(
    "name", ["outlier_blocks", "estimate_rest", "rest_slopes", "dense_layers", "landmarks_per_block", "own_values"]
)
def test_trained_landmarks_keep_their_geometry(name: str, landmark_folder: Path) -> None:
    settings: dict[str, Any] = {name: 1}
    with pytest.raises(InvalidParameter, match="fixed by the model's training"):
        Bench(landmark_folder, **settings)


@pytest.mark.parametrize("fused", [False, True])
def test_trained_landmarks_fetch_until_enough_is_covered(fused: bool, landmark_folder: Path) -> None:
    """Their scores are the attention that blocks get, so 1 reads what a fixed number reads, and little reads less."""
    logits = {}
    for p in (None, 1.0, 0.5):
        bench = Bench(landmark_folder, fused=fused, retrieval_top_p=p)
        logits[p] = bench.logits(bench.session(), random_tokens(LENGTH), [LENGTH], fetch=3)
    torch.testing.assert_close(logits[1.0], logits[None], atol=1e-4, rtol=1e-4)
    assert (logits[0.5] - logits[None]).abs().max() > 1e-3


def test_every_rule_is_tried() -> None:
    tried = {options["landmarks"] for options in OPTIONS.values()}
    assert set(RULES) - tried == {"trained", "lsh", "random", "dilated"}, "those have no option of their own"
