"""A session: where its positions lie, what its hashes stand for, and what forks share."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import BlockStore, CacheLayout, OutOfBlocks, Session
from tests.cache.filling import LAYOUT, SHAPE, compute, new_store, verify

TEXT = LAYOUT.text_per_block  # 3 text tokens and a landmark


@pytest.fixture
def store() -> BlockStore:
    return new_store(16)


def session_of(store: BlockStore, tokens: Sequence[int], computed: int | None = None, salt: bytes = b"") -> Session:
    """A session of which the first `computed` tokens are stored, all by default."""
    session = Session("s", store, [SHAPE, None], salt)
    session.append(tokens)
    compute(session, len(tokens) if computed is None else computed)
    return session


def test_positions_count_the_landmarks_of_full_blocks(store: BlockStore) -> None:
    session = session_of(store, range(8), computed=0)
    seen = []
    for text in range(9):
        compute(session, text)
        seen.append((session.positions, session.sealed, len(session.blocks)))
    # text:          0          1          2          3          4          5          6
    assert seen[:7] == [(0, 0, 0), (1, 0, 1), (2, 0, 1), (4, 1, 1), (5, 1, 2), (6, 1, 2), (8, 2, 2)]
    verify(session)


def test_without_landmarks_a_position_is_a_token() -> None:
    layout = CacheLayout(layers=1, kv_heads=2, head_dim=3, block_size=4)
    session = Session("s", new_store(8, layout), [SHAPE])
    session.append(range(10))
    compute(session, 10)
    assert (session.positions, session.sealed, len(session.blocks)) == (10, 2, 3)
    verify(session)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.data())
def test_any_pieces_store_the_same(tokens: list[int], data: st.DataObject) -> None:
    session = session_of(new_store(16), tokens, computed=0)
    for end in data.draw(st.lists(st.integers(0, len(tokens)), max_size=6).map(sorted)):
        compute(session, end)
    compute(session, len(tokens))
    verify(session)
    assert session.hashes == session_of(new_store(16), tokens).hashes


def test_slots_follow_the_table(store: BlockStore) -> None:
    store.allocate()  # so that slots are not block numbers
    session = session_of(store, range(3 * TEXT))
    assert session.slots(torch.tensor([[2, 0], [1, 1]])).tolist() == [
        [session.blocks[2], session.blocks[0]],
        [session.blocks[1], session.blocks[1]],
    ]
    assert session.slots_between(1, 3).tolist() == session.blocks[1:3]
    assert session.slots_between(1, 1).tolist() == []


# -- room ----------------------------------------------------------------------------------------------------


def test_reserving_takes_each_block_once(store: BlockStore) -> None:
    session = session_of(store, range(10), computed=0)
    session.reserve(4)
    blocks = list(session.blocks)
    session.reserve(4)
    session.reserve(2)
    assert session.blocks == blocks
    session.reserve(10)
    assert session.blocks[: len(blocks)] == blocks
    assert len(session.blocks) == LAYOUT.blocks(10) == 4


def test_without_room_it_holds_what_it_got_and_trim_gives_it_back() -> None:
    store = new_store(3)
    session = session_of(store, range(20), computed=2)
    with pytest.raises(OutOfBlocks):
        session.reserve(20)
    store.check([session.blocks])
    assert store.free == 0
    session.trim()
    assert len(session.blocks) == 1
    assert store.free == 2
    store.check([session.blocks])
    verify(session)


def test_trim_leaves_what_is_written(store: BlockStore) -> None:
    session = session_of(store, range(7))
    blocks = list(session.blocks)
    session.trim()
    assert session.blocks == blocks


def test_close_gives_everything_back(store: BlockStore) -> None:
    session = session_of(store, range(20))
    session.close()
    assert store.free == 16
    store.check([])


# -- hashes --------------------------------------------------------------------------------------------------


def test_there_is_a_hash_for_each_sealed_block(store: BlockStore) -> None:
    session = session_of(store, range(3 * TEXT + 1))
    assert len(session.hashes) == 1 + session.sealed == 4
    assert len(set(session.hashes)) == 4


@pytest.mark.parametrize("changed", range(4 * TEXT))
def test_a_hash_depends_on_every_token_before_it_and_none_after(changed: int) -> None:
    tokens = list(range(4 * TEXT))
    original = session_of(new_store(16), tokens).hashes
    tokens[changed] += 1000
    other = session_of(new_store(16), tokens).hashes
    for blocks in range(5):
        assert (original[blocks] == other[blocks]) == (blocks * TEXT <= changed)


def test_a_hash_depends_on_the_salt() -> None:
    ours, theirs = (session_of(new_store(16), range(9), salt=salt).hashes for salt in (b"ours", b"theirs"))
    assert not set(ours) & set(theirs)


def test_a_hash_depends_on_where_blocks_end() -> None:
    """[1, 23] and [12, 3] must not look the same."""
    first = session_of(new_store(16), [1, 23, 0]).hashes[-1]
    second = session_of(new_store(16), [12, 3, 0]).hashes[-1]
    assert first != second


# -- forks ---------------------------------------------------------------------------------------------------


def test_a_fork_shares_the_sealed_blocks_and_computes_the_open_one_again(store: BlockStore) -> None:
    parent = session_of(store, range(3 * TEXT + 2))
    used = store.tier.used
    fork = parent.fork("f")
    assert store.tier.used == used
    assert fork.blocks == parent.blocks[:3]
    assert fork.tokens == parent.tokens
    assert fork.computed == 3 * TEXT
    assert fork.hashes == parent.hashes
    assert fork.parent == "s"
    compute(fork, len(fork.tokens))
    assert fork.blocks[3] != parent.blocks[3]
    verify(parent)
    verify(fork)
    store.check([parent.blocks, fork.blocks])


def test_forks_go_on_without_touching_each_other(store: BlockStore) -> None:
    parent = session_of(store, range(2 * TEXT + 1))
    forks = [parent.fork("a"), parent.fork("b")]
    for number, session in enumerate((*forks, parent)):
        session.append([50 + number] * 5)
        compute(session, len(session.tokens))
    for session in (parent, *forks):
        verify(session)
    assert len({session.hashes[3] for session in (parent, *forks)}) == 3
    store.check([session.blocks for session in (parent, *forks)])


@pytest.mark.parametrize("sealed", [0, 1, 3])
def test_a_fork_of_fewer_blocks_forgets_the_rest(store: BlockStore, sealed: int) -> None:
    parent = session_of(store, range(3 * TEXT + 2))
    fork = parent.fork("f", sealed)
    assert fork.tokens == parent.tokens[: sealed * TEXT]
    assert fork.computed == sealed * TEXT
    fork.append([70, 71, 72, 73])
    compute(fork, len(fork.tokens))
    verify(fork)
    verify(parent)


def test_a_fork_outlives_its_parent(store: BlockStore) -> None:
    parent = session_of(store, range(4 * TEXT))
    fork = parent.fork("f")
    parent.close()
    other = session_of(store, [5] * 20)  # takes the slots that became free
    verify(fork)
    verify(other)
    store.check([fork.blocks, other.blocks])


def test_a_fork_of_a_half_computed_session_keeps_the_tokens_to_come(store: BlockStore) -> None:
    parent = session_of(store, range(20), computed=4)
    fork = parent.fork("f")
    assert (fork.computed, len(fork.tokens), len(fork.blocks)) == (TEXT, 20, 1)
    compute(fork, 20)
    verify(fork)
