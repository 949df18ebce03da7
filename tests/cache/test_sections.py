"""Sections stand for their blocks: what their values are, that they follow from the index, and what kernels do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache import RULES, SECTION, BlockIndex, IndexShape, Meter, Summary, expected_largest, kernels, slopes

HEADS, CHANNELS, SIZE = 2, 32, 8
RULE = RULES["moments"]
GATHERS: dict[str, Any] = {"gather": RULE.gather, "section_widths": RULE.section_widths(CHANNELS)}
SHAPE = IndexShape((CHANNELS, CHANNELS), values=CHANNELS, slopes=True, rounded=True, **GATHERS)


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


def test_values_and_slopes_are_nearly_those_of_all_keys_together() -> None:
    keys, values = drawn(40)
    gathered = RULE.gather(summary(keys, values))
    whole = [x.unflatten(1, (-1, SECTION)).flatten(2, 3) for x in (keys, values)]
    assert gathered.values is not None
    assert gathered.slopes is not None
    torch.testing.assert_close(gathered.values, whole[1].mean(2))
    for mine, true in zip(gathered.slopes, slopes(*whole), strict=True):
        sign = (mine * true).sum(-1, keepdim=True).sign()
        assert ((sign * mine - true).norm(dim=-1) / true.norm(dim=-1)).median() < 0.3
    nothing = RULE.gather(Summary(summary(keys, values).landmarks, values.mean(2)))
    assert nothing.slopes is None


def test_a_profile_is_what_variances_have_in_common() -> None:
    """Blocks that scatter alike, each in its own size, are told apart by nothing else."""
    generator = torch.Generator().manual_seed(5)
    shape = torch.rand(HEADS, 1, CHANNELS, generator=generator)
    sizes = torch.rand(HEADS, 4 * SECTION, 1, generator=generator)
    variances = sizes * shape
    means = torch.randn(variances.shape, generator=generator)
    gathered = RULE.gather(Summary(torch.cat((means, variances), -1)[:, :, None], means))
    largest = variances.amax(-1, keepdim=True)
    mine = gathered.landmarks[:, :, 0].repeat_interleave(SECTION, 1)
    torch.testing.assert_close(largest * mine, variances, atol=2e-4, rtol=0)


def test_a_slope_tells_how_the_value_of_a_section_turns() -> None:
    """Values that go with keys along one direction: the first order of a softmax over all keys is what a slope says."""
    generator = torch.Generator().manual_seed(3)
    direction, other = torch.eye(CHANNELS)[:2]
    along = torch.randn(HEADS, 4 * SECTION, SIZE, 1, generator=generator)
    noise = 0.05 * torch.randn(2, HEADS, 4 * SECTION, SIZE, CHANNELS, generator=generator)
    keys, values = along * direction + noise[0], 3 * along * other + noise[1]
    gathered = RULE.gather(summary(keys, values))
    assert gathered.slopes is not None
    query = 0.1 * direction
    moved = (gathered.slopes[0] @ query)[..., None] * gathered.slopes[1]
    keys, values = (x.unflatten(1, (-1, SECTION)).flatten(2, 3) for x in (keys, values))
    read = ((keys @ query).softmax(-1)[..., None] * values).sum(2) - values.mean(2)
    torch.testing.assert_close(moved, read, atol=0.05, rtol=0.1)


@pytest.mark.parametrize("rounded", [True, False])
def test_sections_follow_from_blocks_however_these_came(rounded: bool) -> None:
    shape = IndexShape((CHANNELS, CHANNELS), values=CHANNELS, slopes=True, rounded=rounded, **GATHERS)
    index = filled(301, shape)
    assert index.sections is not None
    assert index.sections.count == 301 // SECTION
    packed = index.sections.pack(0, index.sections.count)
    again = BlockIndex(HEADS, shape)
    again.unpack(index.pack(0, 130))
    again.unpack(index.pack(130, 301))
    assert again.sections is not None
    assert (again.sections.pack(0, 75) == packed).all()
    fork, (keys, values) = index.fork(222), drawn(301)
    assert fork.sections is not None
    assert fork.sections.count == 222 // SECTION
    fork.add(summary(keys[:, 222:], values[:, 222:]))
    assert (fork.sections.pack(0, 75) == packed).all(), "it goes on with the section that was open"


def test_memory_counts_sections_and_entries_do_not() -> None:
    plain = IndexShape((CHANNELS, CHANNELS), values=CHANNELS, slopes=True, rounded=True)
    assert SHAPE.block_bytes == plain.block_bytes == plain.memory_bytes
    meter = Meter()
    index = BlockIndex(HEADS, SHAPE, meter)
    index.add(summary(*drawn(400)))
    assert 0 <= 400 * HEADS * SHAPE.memory_bytes - meter.bytes < 400 * HEADS


def rounded(rows: Tensor) -> Tensor:
    """Queries as the kernels take them: in 8 bits, with a scale each."""
    scale = rows.abs().amax(-1, keepdim=True) / 127
    return (rows / scale).round() * scale


@pytest.mark.parametrize("sinks", [0, 1, 5])
@pytest.mark.parametrize(("groups", "sloped"), [(1, True), (4, True), (4, False)])
def test_kernels_choose_by_weight_and_estimate_by_sections(sinks: int, groups: int, sloped: bool) -> None:
    """Also of few blocks, of which no section is whole, or only one."""
    shape = SHAPE if sloped else IndexShape((CHANNELS, CHANNELS), values=CHANNELS, rounded=True, **GATHERS)
    index, fetch = filled(301, shape), 1
    assert index.sections is not None
    ends = np.array([7, 11, 150, 151, 258, 300, 301])
    queries = 0.3 * torch.randn(HEADS, len(ends) * groups, CHANNELS, generator=torch.Generator().manual_seed(1))
    table, sections = index.table, index.sections.table
    room = np.empty((HEADS, kernels("recall").recall_rows(groups), 304 + 64), np.float32)
    blocks = np.empty((HEADS, len(ends), fetch), np.int64)
    weight = np.empty((HEADS, len(ends), groups), np.float32)
    rest = np.empty(queries.shape, np.float32)
    kernels("recall").recall_moments(
        queries.numpy(), np.array([0, len(ends)]), table, np.array([0, len(table)]), sections,
        np.array([0, len(sections)]), sinks, ends, 6, expected_largest(SIZE), math.log(SIZE), True, sloped, room,
        blocks, weight, rest, 0, HEADS,
    )  # fmt: skip
    for query, end in enumerate(ends):
        asked = queries[:, query * groups : (query + 1) * groups]
        taken, mass, value = expected(index, asked, sinks, int(end), fetch, sloped)
        assert blocks[:, query].tolist() == taken.tolist()
        torch.testing.assert_close(torch.from_numpy(weight[:, query]), mass, atol=1e-4, rtol=1e-5)
        found = torch.from_numpy(rest[:, query * groups : (query + 1) * groups])
        torch.testing.assert_close(found, value, atol=0.03 * float(value.abs().max()), rtol=0)


def expected(
    index: BlockIndex, queries: Tensor, sinks: int, end: int, fetch: int, sloped: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What queries (HEADS, groups, CHANNELS) choose, what all else weighs and its value, block by block."""
    assert index.sections is not None
    asked, squares = rounded(queries), rounded(queries.square())
    variances = index._landmarks[1].rows(end)
    for block in range(end):  # its section's profile, or that of the last whole section, in its own size
        section = min(block, end // SECTION * SECTION - 1) // SECTION
        profile = index.sections._landmarks[0].rows(section + 1, section)[:, 0]
        variances[:, block] = variances[:, block].amax(-1, keepdim=True) * profile
    products = [asked @ index._landmarks[0].rows(end).mT, squares @ variances.mT]
    if sloped:
        products.append(asked @ index._slopes[0].rows(end).mT)
    masses = RULE.judge(torch.stack(products, -1), SIZE)[1] + math.log(SIZE)
    masses[..., :sinks] = -torch.inf
    taken = masses.softmax(-1).mean(1).topk(fetch).indices  # (HEADS, fetch)
    masses.scatter_(2, taken[:, None].expand(-1, masses.shape[1], -1), -torch.inf)
    weights, value = masses.softmax(-1), torch.zeros_like(queries)
    for block in range(sinks, end):
        section = block // SECTION
        whole = SECTION * section >= sinks and SECTION * (section + 1) <= end
        kept, at = (index.sections, section) if whole else (index, block)
        mean = kept._values.rows(at + 1, at)  # (HEADS, 1, CHANNELS)
        if sloped:
            along, turn = (part.rows(at + 1, at) for part in kept._slopes)
            mean = mean + (asked @ along.mT) * turn
        value = value + weights[..., block, None] * mean
    return taken, masses.logsumexp(-1), value


@pytest.mark.parametrize("scale", [0.3, 20.0])
@pytest.mark.parametrize("sinks", [1, 70])
def test_nothing_depends_on_how_storage_is_cut_or_who_is_asked_together(sinks: int, scale: float) -> None:
    """To the last bit, also of masses that come out far apart: 20 makes them differ by more than fp32 can tell."""
    index, groups = filled(301), 2
    fork, (keys, values) = index.fork(222), drawn(301)
    fork.add(summary(keys[:, 222:], values[:, 222:]))
    ends = np.array([7, 8, 9, 63, 64, 65, 150, 255, 256, 258, 300, 301])
    generator = torch.Generator().manual_seed(1)
    queries = scale * torch.randn(HEADS, len(ends), groups, CHANNELS, generator=generator)
    together = recalled(index, queries, ends, sinks)
    for found, expected in zip(recalled(fork, queries, ends, sinks), together, strict=True):
        assert (found == expected).all()
    for query in range(len(ends)):
        mine = slice(query, query + 1)
        for found, expected in zip(recalled(index, queries[:, mine], ends[mine], sinks), together, strict=True):
            assert (found == expected[:, mine]).all()


def recalled(index: BlockIndex, queries: Tensor, ends: np.ndarray, sinks: int) -> tuple[np.ndarray, ...]:
    """Blocks (HEADS, T, 3), weights (HEADS, T, G) and values (HEADS, T, G, CHANNELS) for queries with many blocks."""
    assert index.sections is not None
    count, groups = queries.shape[1:3]
    room_rows, of_one = kernels("recall").recall_rows(groups), np.array([0, count])
    room = np.full((HEADS, room_rows, int(-(-ends[-1] // 16) * 16) + 64), np.nan, np.float32)
    blocks, weight = np.empty((HEADS, count, 3), np.int64), np.empty((HEADS, count, groups), np.float32)
    rest = np.empty((HEADS, count * groups, CHANNELS), np.float32)
    kernels("recall").recall_moments(
        queries.flatten(1, 2).numpy(), of_one, index.table, np.array([0, len(index.table)]), index.sections.table,
        np.array([0, len(index.sections.table)]), sinks, ends, 3, expected_largest(SIZE), math.log(SIZE), True, True,
        room, blocks, weight, rest, 0, HEADS,
    )  # fmt: skip
    return blocks, weight, rest.reshape(HEADS, count, groups, CHANNELS)


def test_a_query_whose_end_lies_before_the_sinks_estimates_nothing() -> None:
    """Whatever was in the room before, and whoever is asked with it."""
    index, ends = filled(301), np.array([10, 64, 64])
    assert index.sections is not None
    queries = 0.3 * torch.randn(HEADS, len(ends), CHANNELS, generator=torch.Generator().manual_seed(1))
    room = np.full((HEADS, kernels("recall").recall_rows(1), 64 + 64 + 64), 7.0, np.float32)
    blocks, weight = np.empty((HEADS, len(ends), 2), np.int64), np.empty((HEADS, len(ends), 1), np.float32)
    rest, of_one = np.empty(queries.shape, np.float32), np.array([0, len(ends)])
    kernels("recall").recall_moments(
        queries.numpy(), of_one, index.table, np.array([0, len(index.table)]), index.sections.table,
        np.array([0, len(index.sections.table)]), 70, ends, 0, expected_largest(SIZE), math.log(SIZE), True, True, room,
        blocks, weight, rest, 0, HEADS,
    )  # fmt: skip
    assert (blocks == -1).all()
    assert (weight < -1e29).all()
    assert not rest.any()
