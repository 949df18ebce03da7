"""Who sees which session, whose prefix is found, and what is dropped when room is needed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cache import Session, SessionRegistry
from tests.cache.filling import LAYOUT, SHAPE, compute, new_store, verify

TEXT = LAYOUT.text_per_block
LONG = list(range(5 * TEXT + 1))


@pytest.fixture
def registry() -> SessionRegistry:
    return SessionRegistry(new_store(64), [SHAPE, None], b"model")


def read(registry: SessionRegistry, tokens: Sequence[int], tenant: str = "a") -> Session:
    """A finished anonymous request."""
    session = registry.match(tokens, tenant)
    session.append(tokens[len(session.tokens) :])
    compute(session, len(tokens))
    registry.keep(session)
    return session


def found(registry: SessionRegistry, tokens: Sequence[int], tenant: str = "a") -> int:
    """Tokens of a prompt that need not be computed."""
    session = registry.match(tokens, tenant)
    assert session.tokens.tolist() == list(tokens[: session.computed])
    assert session.parent is None, "an anonymous session does not tell where its blocks come from"
    verify(session)
    session.close()
    return session.computed


# -- tenants -------------------------------------------------------------------------------------------------


def test_a_session_is_seen_by_its_tenant_only(registry: SessionRegistry) -> None:
    session = registry.create("a")
    assert registry.get(session.id, "a") is session
    assert registry.get(session.id, "b") is None
    assert registry.get("unknown", "a") is None
    assert registry.named("a") == [session]
    assert registry.named("b") == []
    assert len(registry) == 1


def test_sessions_are_listed_oldest_first_and_for_everybody_without_a_tenant(registry: SessionRegistry) -> None:
    created = [registry.create(tenant) for tenant in ("a", "b", "a")]
    assert registry.named("a") == [created[0], created[2]]
    assert registry.named() == created
    assert len({session.id for session in created}) == 3


def test_a_prefix_is_found_by_its_tenant_only(registry: SessionRegistry) -> None:
    read(registry, LONG, "a")
    assert found(registry, LONG, "a") == 5 * TEXT
    assert found(registry, LONG, "b") == 0
    read(registry, LONG, "b")
    assert found(registry, LONG, "b") == 5 * TEXT


def test_another_models_prefix_is_not_found() -> None:
    store = new_store(64)
    first = SessionRegistry(store, [SHAPE, None], b"model")
    second = SessionRegistry(store, [SHAPE, None], b"other")
    kept = read(first, LONG)
    second.keep(kept.fork("shared"))
    assert found(second, LONG) == 0


# -- matching ------------------------------------------------------------------------------------------------


def test_a_named_session_begins_with_what_is_known_of_its_text(registry: SessionRegistry) -> None:
    read(registry, LONG, "a")
    used = registry.store.tier.used
    session, stranger = registry.create("a"), registry.create("b")
    for each in (session, stranger):
        registry.go_on(each, LONG)
    assert (session.computed, stranger.computed) == (5 * TEXT, 0)
    assert registry.store.tier.used == used
    compute(session, len(LONG))
    verify(session)
    registry.go_on(session, [1])
    assert session.computed == len(LONG)
    session.trim()
    registry.check()


@pytest.mark.parametrize("length", range(1, 4 * TEXT))
def test_the_longest_prefix_is_found_but_a_token_is_left(registry: SessionRegistry, length: int) -> None:
    read(registry, LONG)
    assert found(registry, LONG[:length]) == (length - 1) // TEXT * TEXT


@pytest.mark.parametrize("same", range(3 * TEXT))
def test_a_prefix_ends_where_the_texts_part(registry: SessionRegistry, same: int) -> None:
    read(registry, LONG)
    assert found(registry, [*LONG[:same], *[77] * 20]) == same // TEXT * TEXT


def test_the_longest_of_several_holders_is_taken(registry: SessionRegistry) -> None:
    read(registry, LONG[: 2 * TEXT + 1])
    read(registry, LONG)
    read(registry, LONG[: TEXT + 1])
    assert found(registry, [*LONG, 1, 2, 3]) == 5 * TEXT


def test_a_match_shares_blocks_and_goes_on_alone(registry: SessionRegistry) -> None:
    kept = read(registry, LONG)
    used = registry.store.tier.used
    session = registry.match([*LONG[: 3 * TEXT], 50, 51, 52, 53], "a")
    assert registry.store.tier.used == used
    session.append([50, 51, 52, 53])
    compute(session, len(session.tokens))
    verify(session)
    verify(kept)
    registry.keep(session)
    registry.check()


def test_what_shares_nothing_starts_afresh(registry: SessionRegistry) -> None:
    read(registry, LONG)
    assert registry.start(LONG, "a", share=False).computed == 0


def test_a_named_sessions_text_is_found_once_it_is_published(registry: SessionRegistry) -> None:
    session = registry.create("a")
    session.append(LONG)
    compute(session, len(LONG))
    assert found(registry, LONG) == 0
    registry.publish(session)
    assert found(registry, LONG) == 5 * TEXT
    assert found(registry, LONG, "b") == 0
    registry.delete(session)
    assert found(registry, LONG) == 0
    registry.check()


def test_what_is_not_computed_is_not_found(registry: SessionRegistry) -> None:
    session = registry.anonymous("a")
    session.append(LONG)
    compute(session, 2 * TEXT + 1)
    registry.keep(session)
    assert found(registry, LONG) == 2 * TEXT


# -- eviction ------------------------------------------------------------------------------------------------


def test_the_least_recently_used_prompt_is_dropped_first(registry: SessionRegistry) -> None:
    prompts = [[number * 100 + i for i in range(7)] for number in range(3)]
    first, second, third = (read(registry, prompt) for prompt in prompts)
    assert found(registry, prompts[0])  # used again, so the second is the oldest now
    for dropped in (second, third, first):
        assert dropped.blocks
        assert registry.evict()
        assert not dropped.blocks
        assert found(registry, dropped.tokens) == 0
        registry.check()
    assert not registry.evict()
    assert registry.store.tier.used == 0


def test_evicting_gives_back_what_nobody_shares(registry: SessionRegistry) -> None:
    read(registry, LONG)
    shared = registry.match(LONG[: 2 * TEXT + 1], "a")
    assert registry.evict()
    assert registry.store.tier.used == 2
    verify(shared)
    shared.close()
    registry.check()


def test_named_sessions_are_never_evicted(registry: SessionRegistry) -> None:
    session = registry.create("a")
    session.append(LONG)
    compute(session, len(LONG))
    registry.publish(session)
    assert not registry.evict()
    verify(session)
    registry.check()


def test_a_prefix_is_found_as_long_as_anybody_holds_it(registry: SessionRegistry) -> None:
    """The second prompt continues the first; dropping the first must not hide what the second holds."""
    read(registry, LONG[: 2 * TEXT + 1])
    read(registry, LONG)
    assert registry.evict()
    assert found(registry, LONG) == 5 * TEXT
    assert found(registry, LONG[: 2 * TEXT + 1]) == 2 * TEXT


def test_deleting_a_session_leaves_the_prefix_to_its_other_holders(registry: SessionRegistry) -> None:
    session = registry.create("a")
    session.append(LONG)
    compute(session, len(LONG))
    registry.publish(session)
    read(registry, LONG)
    registry.delete(session)
    assert found(registry, LONG) == 5 * TEXT
    registry.check()


# -- forks ---------------------------------------------------------------------------------------------------


def test_a_fork_belongs_to_the_tenant_and_tells_its_parent(registry: SessionRegistry) -> None:
    session = registry.create("a")
    session.append(LONG)
    compute(session, len(LONG))
    fork = registry.fork(session)
    assert registry.get(fork.id, "a") is fork
    assert registry.get(fork.id, "b") is None
    assert fork.parent == session.id
    registry.check()
    registry.delete(session)
    assert registry.named("a") == [fork]
    verify(fork)
    registry.check()


@pytest.mark.parametrize("length", range(1, 3 * TEXT + 2))
def test_a_branch_has_all_tokens_and_leaves_the_last_to_compute(registry: SessionRegistry, length: int) -> None:
    session = registry.anonymous("a")
    session.append(LONG[:length])
    compute(session, length)
    branch = registry.branch(session)
    assert branch.tokens == session.tokens
    assert branch.computed == (length - 1) // TEXT * TEXT
    assert registry.named() == []
    compute(branch, length)
    verify(branch)
    verify(session)
    for each in (session, branch):
        each.close()
    registry.check()


def test_check_finds_a_session_that_was_lost(registry: SessionRegistry) -> None:
    session = registry.anonymous("a")
    session.append(LONG)
    compute(session, 4)
    with pytest.raises(AssertionError):
        registry.check()
    session.close()
    registry.check()
