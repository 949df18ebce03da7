"""Pairs and sections stand for their blocks: what they are, that they follow from the index, and what kernels do."""

from __future__ import annotations

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cache import (
    PAIR,
    RULES,
    SECTION,
    BlockIndex,
    Gathering,
    IndexShape,
    Meter,
    Summary,
    expected_largest,
    kernels,
    pairs_opened,
    slopes,
)
from cache.four_bits import rounded as four_bits
from cache.gathering import HASTE
from cache.opened import Opened, record_bytes
from cache.pages import Slab
from cache.sections import Gathered
from cache.usual import BEGINNING, Usual, narrow, usual
from cache.vectors import Vectors
from tests.cache.scarce import Scarce

HEADS, CHANNELS, SIZE = 2, 32, 8
RULE = RULES["moments"]
GATHERING = Gathering(RULE.usual, RULE.gather, RULE.pair_widths(CHANNELS), few=BEGINNING - 1)
PAIRS = SECTION // PAIR
SHAPE = IndexShape((CHANNELS, CHANNELS), values=CHANNELS, slopes=True, rounded=True, gathering=GATHERING)


def drawn(blocks: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values (HEADS, blocks, SIZE, CHANNELS) that scatter, each block in its own way, and go together."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(HEADS, blocks, *shape, CHANNELS, generator=generator)

    keys = normal(SIZE) * normal(1).exp() * 0.5 + normal(1)
    return keys, normal(SIZE) + keys.roll(3, -1)


def summary(keys: Tensor, values: Tensor) -> Summary:
    sloped = slopes(keys, values)
    return Summary(RULE.beside_slope(RULE.landmarks(keys, 0, 1), sloped[0]), values.mean(2), sloped)


def filled(blocks: int, shape: IndexShape = SHAPE, pieces: int = 7) -> BlockIndex:
    index, (keys, values) = BlockIndex(HEADS, shape), drawn(blocks)
    for start in range(0, blocks, pieces):
        index.add(summary(keys[:, start : start + pieces], values[:, start : start + pieces]))
    return index


def plain(channels: int = CHANNELS) -> Usual:
    """What would be usual if nothing were narrowed."""
    return Usual(torch.ones(HEADS, channels), *[torch.eye(channels).expand(HEADS, -1, -1).contiguous()] * 2)


def test_values_and_slopes_are_nearly_those_of_all_keys_together() -> None:
    keys, values = drawn(40)
    pairs, sections = RULE.gather(summary(keys, values), plain())
    assert sections.values is not None
    assert sections.slopes is not None
    whole = [x.unflatten(1, (-1, SECTION)).flatten(2, 3) for x in (keys, values)]
    torch.testing.assert_close(sections.values, whole[1].mean(2))
    for mine, true in zip(sections.slopes, slopes(*whole), strict=True):
        sign = (mine * true).sum(-1, keepdim=True).sign()
        assert ((sign * mine - true).norm(dim=-1) / true.norm(dim=-1)).median() < 0.4
    whole = [x.unflatten(1, (-1, PAIR)).flatten(2, 3) for x in (keys, values)]
    mean, along, size = pairs.landmarks[:, :, 0].split((CHANNELS, CHANNELS, 1), -1)
    torch.testing.assert_close(mean, whole[0].mean(2))
    true = slopes(*whole)[0]
    sign = (along * true).sum(-1, keepdim=True).sign()
    assert ((sign * along - true).norm(dim=-1) / true.norm(dim=-1)).median() < 0.3
    left = whole[0].var(2, correction=0) - along.square()
    torch.testing.assert_close(size[..., 0], left.clamp(min=0).amax(-1), atol=1e-4, rtol=1e-4)


def test_a_profile_is_what_variances_have_in_common() -> None:
    """Pairs that scatter alike, each in its own size, are told apart by nothing else."""
    generator = torch.Generator().manual_seed(5)
    shape = torch.rand(HEADS, 1, CHANNELS, generator=generator)
    sizes = torch.rand(HEADS, BEGINNING // PAIR, 1, generator=generator).repeat_interleave(PAIR, 1)
    variances = shape * sizes
    nothing = torch.zeros_like(variances)
    blocks = Summary(torch.cat((nothing, variances), -1)[:, :, None], nothing, (nothing, nothing))
    known = RULE.usual(blocks)
    pairs, _ = RULE.gather(blocks, known)
    size = pairs.landmarks[:, :, 0, -1:]
    torch.testing.assert_close(size * known.profile[:, None], variances[:, ::PAIR], atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [16, 24, 32, 96, 128])
def test_directions_are_those_in_which_keys_and_values_are_large(channels: int) -> None:
    """What lies in half of the directions loses nothing, and in each direction it is about as large."""
    generator = torch.Generator().manual_seed(2)
    within = torch.linalg.qr(torch.randn(HEADS, channels, channels, generator=generator)).Q[..., : narrow(channels)]
    sizes = torch.linspace(0.2, 3, narrow(channels))
    means, along = ((torch.randn(HEADS, BEGINNING, narrow(channels), generator=generator) * sizes) @ within.mT
                    for _ in range(2))  # fmt: skip
    nothing = torch.zeros_like(means)
    known = (
        usual(Gathered(means, nothing, along, along, means)),
        usual(Gathered(nothing, nothing, means, nothing, along)),
    )
    for directions in (known[0].keys, known[0].values.mT):
        assert directions.shape == (HEADS, channels, narrow(channels))
        near(directions.mT @ directions, torch.eye(narrow(channels)).expand(HEADS, -1, -1))
    for vectors in (means, along):
        near(known[0].of_keys(vectors) @ known[0].keys.mT, vectors)
        near(known[1].widened(known[1].of_values(vectors)), vectors)
    for squares in (known[0].of_keys(means).square().mean(1), known[1].of_values(means).square().mean(1)):
        assert (squares.amax(-1) / squares.amin(-1)).max() < 8, "of the sizes they lie between 0.04 and 9"


@pytest.mark.parametrize("channels", [64, 128])
def test_what_is_usual_is_the_same_by_any_number_of_threads(channels: int) -> None:
    """To the last bit: whether a prompt is read in steps or beside them, or a session comes back, must not matter."""
    generator, before = torch.Generator().manual_seed(3), torch.get_num_threads()
    parts = [torch.randn(HEADS, BEGINNING, channels, generator=generator) for _ in range(4)]
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(usual(Gathered(parts[0], parts[1].square(), *parts[1:])))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name in ("profile", "keys", "values"):
            assert torch.equal(getattr(other, name), getattr(found[0], name))


@pytest.mark.parametrize("broken", [math.inf, math.nan, 3e38])
def test_what_overflows_has_directions_all_the_same(broken: float) -> None:
    """A model, or a file, whose numbers are none must not stop others that are in the same step."""
    vectors = torch.randn(HEADS, BEGINNING, CHANNELS, generator=torch.Generator().manual_seed(4))
    vectors[0, 3, 5] = broken
    known = usual(Gathered(*[vectors] * 5))
    for directions in (known.keys, known.values.mT):
        near(directions.mT @ directions, torch.eye(narrow(CHANNELS)).expand(HEADS, -1, -1))


def test_a_slope_tells_how_the_value_of_a_section_turns() -> None:
    """Values that go with keys along one direction: the first order of a softmax over all keys is what a slope says."""
    generator = torch.Generator().manual_seed(3)
    direction, other = torch.eye(CHANNELS)[:2]
    along = torch.randn(HEADS, 4 * SECTION, SIZE, 1, generator=generator)
    noise = 0.05 * torch.randn(2, HEADS, 4 * SECTION, SIZE, CHANNELS, generator=generator)
    keys, values = along * direction + noise[0], 3 * along * other + noise[1]
    _, gathered = RULE.gather(summary(keys, values), plain())
    assert gathered.slopes is not None
    query = 0.1 * direction
    moved = (gathered.slopes[0] @ query)[..., None] * gathered.slopes[1]
    keys, values = (x.unflatten(1, (-1, SECTION)).flatten(2, 3) for x in (keys, values))
    read = ((keys @ query).softmax(-1)[..., None] * values).sum(2) - values.mean(2)
    torch.testing.assert_close(moved, read, atol=0.05, rtol=0.1)


def test_a_kernel_gathers_as_torch_does() -> None:
    blocks = summary(*drawn(5 * SECTION))
    assert blocks.values is not None
    assert blocks.slopes is not None
    means, variances = blocks.landmarks[:, :, 0].chunk(2, -1)
    means[0, :SECTION], variances[0, :SECTION] = 1.0, 0.0  # of this section all keys are equal
    for along in blocks.slopes:
        along[0, :SECTION] = 0.0
    known = RULE.usual(summary(*drawn(BEGINNING, seed=1)))
    pairs, sections = RULE.gather(blocks, known)
    of_pairs = Gathered(means, variances, blocks.values, *blocks.slopes).together(PAIR)
    of_sections = of_pairs.together(PAIRS)
    mean, along, size = pairs.landmarks[:, :, 0].split(RULE.pair_widths(CHANNELS), -1)
    near(mean, known.of_keys(of_pairs.means))
    near(*turned(known.of_keys(of_pairs.along), along, along))
    near(size[..., 0], of_pairs.variances.amax(-1))
    assert sections.values is not None
    assert sections.slopes is not None
    near(sections.values, known.of_values(of_sections.values))
    along, turning = sections.slopes
    true = known.of_keys(of_sections.along)
    near(*turned(true, along, along))
    near(*turned(true, along, turning, known.of_values(of_sections.turning)))


def turned(true: Tensor, found: Tensor, mine: Tensor, its: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Directions may point either way: vectors that go with `found` as others go with `true`, and those."""
    sign = (true * found).sum(-1, keepdim=True).sign()
    return sign * mine, true if its is None else its


def near(mine: Tensor, its: Tensor) -> None:
    torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("gathering", [GATHERING, replace(GATHERING, few=200).in_layer(3)])
def test_pairs_and_sections_follow_from_blocks_however_these_came(rounded: bool, gathering: Gathering) -> None:
    shape = replace(SHAPE, rounded=rounded, gathering=gathering)
    index = filled(301, shape)
    expected = told(index)
    again = BlockIndex(HEADS, shape)
    again.unpack(index.pack(0, 130))
    again.unpack(index.pack(130, 301))
    for mine, theirs in zip(told(again), expected, strict=True):
        assert (mine == theirs).all()
    for count in (222, 129, 110, 70, 30):
        fork, (keys, values) = index.fork(count), drawn(301)
        assert index.sections is not None
        assert fork.sections is not None
        assert fork.pairs is not None
        ready = gathering.ready(count)
        assert (fork.sections.count, fork.pairs.count) == (ready // SECTION, ready // SECTION * PAIRS)
        assert fork.usual is (index.usual if ready else None)
        fork.add(summary(keys[:, count:], values[:, count:]))
        for mine, theirs in zip(told(fork), expected, strict=True):
            assert (mine == theirs).all(), "it goes on with the section that was open"


def test_who_shares_the_beginning_shares_what_it_tells_whoever_needs_it_first() -> None:
    shape, (keys, values) = replace(SHAPE, gathering=replace(GATHERING, few=200).in_layer(0)), drawn(301)
    index = BlockIndex(HEADS, shape)
    index.add(summary(keys[:, :100], values[:, :100]))
    forks = index.fork(90), index.fork(80).fork(70), index.fork(60)
    assert index.usual is None
    for fork in forks:
        fork.add(summary(keys[:, fork.count :], values[:, fork.count :]))
    assert forks[0].usual is not None
    assert forks[0].usual is forks[1].usual
    assert forks[2].usual is not forks[0].usual, "its beginning is its own"
    for mine, theirs in zip(told(forks[0]), told(forks[2]), strict=True):
        assert (mine == theirs).all()


def test_what_is_usual_is_told_once_by_however_many_threads() -> None:
    shape, (keys, values) = replace(SHAPE, gathering=replace(GATHERING, few=200).in_layer(0)), drawn(301)
    index = BlockIndex(HEADS, shape)
    index.add(summary(keys[:, :100], values[:, :100]))
    forks, start = [index.fork(100) for _ in range(6)], threading.Barrier(6)

    def grow(fork: BlockIndex) -> int:
        start.wait()
        fork.add(summary(keys[:, 100:101], values[:, 100:101]))
        return int(fork.table[0, -1])

    with ThreadPoolExecutor(6) as threads:
        places = set(threads.map(grow, forks))
    assert len(places) == 1, "kernels of all of them read it where it lies"
    assert 0 not in places


def told(index: BlockIndex) -> list[np.ndarray]:
    """All that is kept of pairs and sections, and to open pairs, and what is usual."""
    assert index.sections is not None
    assert index.pairs is not None
    assert index.shape.gathering is not None
    ready = index.shape.gathering.ready(index.count)
    assert (index.sections.count, index.pairs.count) == (ready // SECTION, ready // SECTION * PAIRS)
    assert index._opened is None or index._opened.count == ready
    parts = [kept.pack(0, kept.count) for kept in (index.pairs, index.sections)]
    opened = [index._opened.pack(0, index._opened.count)] if index._opened else []
    known = (index.usual.profile, index.usual.keys, index.usual.values) if index.usual else ()
    return [*parts, *opened, *(each.numpy() for each in known)]


def test_pairs_are_ready_when_somebody_looks_and_not_long_before() -> None:
    for few in (63, 80, 100, 1024):
        for layer in (0, 5, 300):
            gathering = replace(GATHERING, few=few).in_layer(layer)
            ready = [gathering.ready(count) for count in range(2 * few)]
            assert ready == sorted(ready)
            assert all(mine <= count for count, mine in enumerate(ready))
            assert ready[max(few + 1, BEGINNING) :] == list(range(max(few + 1, BEGINNING), 2 * few))
            begin = max(BEGINNING, few // 2)
            assert not any(ready[:begin]), "there must be a beginning, and most sessions stay short"
            assert few < 2 * BEGINNING or max(b - a for a, b in itertools.pairwise(ready)) <= HASTE, "not all at once"
    begins = [replace(GATHERING, few=1024).in_layer(layer).begin for layer in range(28)]
    assert len(set(begins)) == 28, "layers take turns"


@pytest.mark.parametrize("channels", [1, 32, 48, 128])
def test_what_opens_pairs_is_mean_slope_and_size_of_each_block(channels: int) -> None:
    rows = torch.randn(HEADS, 200, 2 * channels + 1, generator=torch.Generator().manual_seed(1))
    rows[..., -1].abs_()
    kept = Vectors(HEADS, 2 * channels + 1, Opened)
    for start, stop in ((0, 1), (1, 70), (70, 113)):
        kept.add(rows[:, start:stop])
    fork = kept.fork(101)
    kept.add(rows[:, 113:])
    fork.add(rows[:, 101:])
    numbers, scales = four_bits(rows[..., :-1].unflatten(-1, (2, channels)).flatten(1, 2))
    expected = torch.cat(((numbers * scales[..., None]).view(HEADS, 200, -1), rows[..., -1:]), -1)
    for each in (kept, fork):
        torch.testing.assert_close(each.rows(200), expected, rtol=0, atol=0)
        torch.testing.assert_close(each.rows(120, 33), expected[:, 33:120], rtol=0, atol=0)


def test_opened_blocks_are_those_of_the_index() -> None:
    index = filled(301)
    assert index._opened is not None
    mean, variance, along = (each.rows(301) for each in (*index._landmarks, index._slopes[0]))
    expected = torch.cat((mean, along, variance.amax(-1, keepdim=True) / 7), -1)
    torch.testing.assert_close(index._opened.rows(301), expected)


def test_memory_counts_sections_and_entries_do_not() -> None:
    plain = IndexShape((CHANNELS, CHANNELS), values=CHANNELS, slopes=True, rounded=True)
    assert SHAPE.block_bytes == plain.block_bytes == plain.memory_bytes()
    meter = Meter()
    index = BlockIndex(HEADS, SHAPE, meter)
    index.add(summary(*drawn(400)))
    assert index.usual is not None
    assert index.usual.nbytes == HEADS * Usual.head_bytes(CHANNELS)
    of_usual = -(-Usual.head_bytes(CHANNELS) // BEGINNING)
    of_blocks = meter.bytes - index.usual.nbytes
    assert 0 <= 400 * HEADS * (SHAPE.memory_bytes() - of_usual) - of_blocks < 400 * HEADS
    opened = record_bytes(CHANNELS) // PAIR
    assert SHAPE.memory_bytes(torch.device("meta")) == SHAPE.memory_bytes() - opened


def rounded(rows: Tensor) -> Tensor:
    """Queries as the kernels take them: in 8 bits, with a scale each."""
    scale = rows.abs().amax(-1, keepdim=True) / 127
    return (rows / scale).round() * scale


class Told(Slab):
    """Tells where its pieces lie."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: set[int] = set()

    def take(self, count: int) -> np.ndarray:
        piece = super().take(count)
        self.pieces.add(piece.ctypes.data)
        return piece


def test_from_many_blocks_on_pairs_and_sections_lie_in_large_pages_with_their_blocks() -> None:
    slab = Told()
    index = BlockIndex(HEADS, SHAPE, slab=slab)
    index.add(summary(*drawn(1032)))
    seen = set()
    for kept, stands_for in ((index, 1), (index.pairs, PAIR), (index.sections, SECTION)):
        assert kept is not None
        for capacity, _, words, *_ in kept.table:
            large = bool(capacity * stands_for >= 1024)
            seen.add((stands_for, large))
            assert (int(words) in slab.pieces) == large
    assert len(seen) == 6, "each has both"


@pytest.mark.parametrize("pieces", range(0, 24, 2))
@pytest.mark.parametrize("packed", [False, True])
def test_what_cannot_be_appended_leaves_no_trace(pieces: int, packed: bool) -> None:
    """Wherever memory ends: nothing of it is there, and what comes later is in its place."""
    slab, whole = Scarce(pieces), filled(2500, pieces=500)
    index, (keys, values) = BlockIndex(HEADS, SHAPE, slab=slab), drawn(2500)

    def append(start: int) -> None:
        if packed:
            index.unpack(whole.pack(start, start + 500))
        else:
            index.add(summary(keys[:, start : start + 500], values[:, start : start + 500]))

    failed = False
    while index.count < 2500:
        try:
            append(index.count)
        except MemoryError:
            failed, slab.left = True, 100
            for mine, theirs in zip(told(index), told(whole.fork(index.count)), strict=True) if index.count else ():
                assert (mine == theirs).all()
    assert failed
    for mine, theirs in zip([index.pack(0, 2500), *told(index)], [whole.pack(0, 2500), *told(whole)], strict=True):
        assert (mine == theirs).all()


@pytest.mark.parametrize("sinks", [0, 1, 5, 57])
@pytest.mark.parametrize("groups", [1, 2, 4, 5])
@pytest.mark.parametrize("fetch", [1, 5])
def test_kernels_choose_by_weight_and_estimate_by_sections(sinks: int, groups: int, fetch: int) -> None:
    """Also where the sinks reach so far that of what is left no section is whole, or only one."""
    index = filled(301)
    ends = np.array([64, 66, 71, 72, 150, 151, 258, 300, 301])
    queries = 0.3 * torch.randn(HEADS, len(ends), groups, CHANNELS, generator=torch.Generator().manual_seed(1))
    blocks, weight, rest = (torch.from_numpy(x) for x in recalled(index, queries, ends, sinks, fetch))
    closed = 0
    for query, end in enumerate(ends):
        taken, mass, value, left = expected(index, queries[:, query], sinks, int(end), fetch)
        closed += left
        assert blocks[:, query].sort(-1).values.tolist() == taken.sort(-1).values.tolist()
        torch.testing.assert_close(weight[:, query], mass, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(rest[:, query], value, atol=0.03 * float(value.abs().max()), rtol=0)
    assert closed > 100


def expected(
    index: BlockIndex, queries: Tensor, sinks: int, end: int, fetch: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """What queries (HEADS, groups, CHANNELS) choose, what all else weighs and its value, one block after the other.

    And how many blocks are not looked at by themselves.
    """
    assert index.sections is not None
    assert index.pairs is not None
    assert index.usual is not None
    asked, squares = rounded(queries), queries.square()
    looking = rounded(index.usual.of_keys(queries))
    inside = [b for b in range(sinks, end) if b // SECTION * SECTION >= sinks and (b // SECTION + 1) * SECTION <= end]
    pairs = sorted({block // PAIR for block in inside})
    profile = index.usual.profile[..., None]  # (HEADS, CHANNELS, 1)

    def mass(asked: Tensor, mean: Tensor, along: Tensor, size: Tensor, count: int) -> Tensor:
        variance = size.amax(-1)[:, None] * (squares @ profile)[..., 0]
        products = [(asked @ mean[..., None])[..., 0], variance, (asked @ along[..., None])[..., 0]]
        return RULE.judge(torch.stack(products, -1), count)[1] + math.log(count)  # (HEADS, groups)

    def of_block(block: int) -> Tensor:
        parts = *index._landmarks, index._slopes[0]
        mean, size, along = (part.rows(block + 1, block)[:, 0] for part in parts)
        return mass(asked, mean, along, size, SIZE)

    def of_pair(pair: int) -> Tensor:
        assert index.pairs is not None
        mean, along, size = (part.rows(pair + 1, pair)[:, 0] for part in index.pairs._landmarks)
        return mass(looking, mean, along, size, PAIR * SIZE)

    masses = torch.stack([of_block(block) for block in range(end)], -1)  # (HEADS, groups, end)
    masses[..., :sinks] = -torch.inf
    may = torch.ones(HEADS, end, dtype=torch.bool)
    if pairs:
        together = torch.stack([of_pair(pair) for pair in pairs], -1)
        best = together.softmax(-1).mean(1).topk(min(len(pairs), pairs_opened(fetch))).indices
        for head in range(HEADS):
            for i in set(range(len(pairs))) - set(best[head].tolist()):
                mine = slice(PAIR * pairs[i], PAIR * pairs[i] + PAIR)
                masses[head, :, mine], may[head, mine] = together[head, :, i, None] - math.log(PAIR), False
    wanted = masses.softmax(-1).mean(1).masked_fill(~may, -1.0)
    wanted[:, :sinks] = -1.0
    taken = wanted.topk(min(fetch, end - sinks)).indices  # (HEADS, fetch)
    taken = torch.nn.functional.pad(taken, (0, fetch - taken.shape[1]), value=-1)
    for head, blocks in enumerate(taken):
        masses[head, :, blocks[blocks >= 0]] = -torch.inf
    weights, value = masses.softmax(-1).nan_to_num(0.0), torch.zeros_like(queries)
    for block in range(sinks, end):
        kept, at = (index.sections, block // SECTION) if block in inside else (index, block)
        mean = kept._values.rows(at + 1, at)  # (HEADS, 1, CHANNELS), or half as many
        along, turn = (part.rows(at + 1, at) for part in kept._slopes)
        found = mean + ((looking if block in inside else asked) @ along.mT) * turn
        value = value + weights[..., block, None] * (index.usual.widened(found) if block in inside else found)
    return taken, masses.logsumexp(-1).clamp(min=-1e30), value, int((~may).sum())


@pytest.mark.parametrize("scale", [0.3, 20.0])
@pytest.mark.parametrize("sinks", [1, 70])
def test_nothing_depends_on_how_storage_is_cut_or_who_is_asked_together(sinks: int, scale: float) -> None:
    """To the last bit, also of masses that come out far apart: 20 makes them differ by more than fp32 can tell."""
    index, groups = filled(301), 2
    fork, (keys, values) = index.fork(222), drawn(301)
    fork.add(summary(keys[:, 222:], values[:, 222:]))
    ends = np.array([64, 65, 79, 80, 81, 150, 255, 256, 258, 300, 301])
    generator = torch.Generator().manual_seed(1)
    queries = scale * torch.randn(HEADS, len(ends), groups, CHANNELS, generator=generator)
    together = recalled(index, queries, ends, sinks)
    compare(recalled(fork, queries, ends, sinks), together)
    for query in range(len(ends)):
        mine = slice(query, query + 1)
        found = recalled(index, queries[:, mine], ends[mine], sinks)
        compare(found, tuple(expected[:, mine] for expected in together))


def compare(found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    """Blocks, weights and values."""
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def recalled(
    index: BlockIndex, queries: Tensor, ends: np.ndarray, sinks: int, fetch: int = 3
) -> tuple[np.ndarray, ...]:
    """Blocks (HEADS, T, fetch), weights (HEADS, T, G) and values (HEADS, T, G, CHANNELS) for queries that have many."""
    assert index.sections is not None
    assert index.pairs is not None
    count, groups = queries.shape[1:3]
    tables = []
    for table in (index.table, index.pairs.table, index.sections.table, index.opened_table):
        tables += [table, np.array([0, len(table)])]
    room_rows, of_one = kernels("recall").recall_rows(groups), np.array([0, count])
    room = np.full((HEADS, room_rows, int(-(-ends[-1] // 16) * 16) + 64), np.nan, np.float32)
    blocks, weight = np.empty((HEADS, count, fetch), np.int64), np.empty((HEADS, count, groups), np.float32)
    rest = np.empty((HEADS, count * groups, CHANNELS), np.float32)
    how = expected_largest(SIZE), math.log(SIZE), expected_largest(PAIR * SIZE)
    kernels("recall").recall_moments(
        queries.flatten(1, 2).numpy(), of_one, *tables, sinks, ends, BEGINNING - 1, *how, True, True, room, blocks,
        weight, rest, 0, HEADS,
    )  # fmt: skip
    return blocks, weight, rest.reshape(HEADS, count, groups, CHANNELS)


def test_a_query_whose_end_lies_before_the_sinks_estimates_nothing() -> None:
    """Whatever was in the room before, and whoever is asked with it."""
    index, ends = filled(301), np.array([64, 64, 70])
    queries = 0.3 * torch.randn(HEADS, len(ends), 1, CHANNELS, generator=torch.Generator().manual_seed(1))
    blocks, weight, rest = recalled(index, queries, ends, 70)
    assert (blocks == -1).all()
    assert (weight < -1e29).all()
    assert not rest.any()
