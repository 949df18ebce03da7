"""A restart goes on where the server was, what is equal is stored once, and nobody reads what is not his."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cache import PagedTier
from engine import EngineConfig, InvalidParameter, OutOfRoom, RetrievalParams, SessionTooLong
from engine.budgets import least_blocks
from tests.engine.durable import BLOCKS, Durable
from tests.models import random_tokens, save_model

FIRST, SECOND = random_tokens(90, seed=1), random_tokens(33, seed=2)
Make = Callable[..., Durable]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Engines on a folder of their own."""
    made: list[Durable] = []

    def make(folder: Path, name: str = "store", **config: Any) -> Durable:
        made.append(Durable(folder, tmp_path / name, **config))
        return made[-1]

    yield make
    for durable in made:
        durable.close()


@pytest.fixture(params=["chosen", "trained"])
def durable(request: pytest.FixtureRequest, make: Make, tiny_folder: Path, landmark_folder: Path) -> Durable:
    return make(landmark_folder if request.param == "trained" else tiny_folder)


@pytest.fixture
def one(make: Make, tiny_folder: Path) -> Durable:
    """Of one kind, where the kind does not matter."""
    return make(tiny_folder)


def new(durable: Durable, tenant: str = "", **options: Any) -> str:
    return durable.run.engine.create_session(tenant, **options).id


def sealed(durable: Durable, tokens: int) -> int:
    """Of so many computed tokens, those that lie in full blocks."""
    size = durable.blocks.layout.text_per_block
    return tokens // size * size


def computed(durable: Durable) -> int:
    """Text tokens that steps computed since the last look."""
    total = sum(report.prefill_tokens + report.decode_tokens for report in durable.run.gate.reports)
    durable.run.gate.reports.clear()
    return total


# -- a restart -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [BLOCKS, 4 * BLOCKS])
def test_after_a_restart_only_the_open_block_is_computed_again(durable: Durable, blocks: int) -> None:
    session = new(durable)
    told = durable.turn(session, FIRST, 9).tokens()
    kept = sealed(durable, len(FIRST) + len(told) - 1)
    durable.restart(blocks)
    request = durable.turn(session, SECOND, 5)
    whole = len(FIRST) + len(told) + len(SECOND)
    usage = request.end.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (whole, kept, 5)
    assert sum(report.prefill_tokens for report in durable.run.gate.reports) == whole - kept
    assert sum(report.decode_tokens for report in durable.run.gate.reports) == 4
    assert durable.run.engine.stats().damaged == 0
    durable.check()


def test_many_turns_and_restarts(durable: Durable) -> None:
    session = new(durable)
    for number in range(6):
        before = durable.session(session).computed
        request = durable.turn(session, random_tokens(37, seed=number), 5)
        assert request.end.usage.cached_tokens == sealed(durable, before)
        durable.restart((BLOCKS, 2 * BLOCKS)[number % 2])
    assert durable.run.engine.stats().damaged == 0


def test_a_text_that_fills_no_block_comes_back(durable: Durable) -> None:
    sessions = {count: new(durable) for count in (0, 1, 3, 7, 8, 9)}
    for count, session in sessions.items():
        if count:
            durable.turn(session, FIRST[:count], 0)
    durable.restart()
    for count, session in sessions.items():
        assert durable.tokens(session) == FIRST[:count]
        durable.turn(session, SECOND, 3)
    durable.check()


def test_forks_and_what_is_known_of_sessions_come_back(durable: Durable) -> None:
    engine = durable.run.engine
    first = new(durable, "a", pinned=True, ttl=3600.0)
    durable.turn(first, FIRST, 5, "a")
    fork = engine.fork_session(first, "a").id
    durable.turn(first, SECOND, 5, "a")
    durable.turn(fork, SECOND[::-1], 5, "a")
    grandchild = engine.fork_session(fork, "a").id
    engine.change_session(fork, "a", pinned=True, ttl=0.0)
    engine.change_session(grandchild, "a", pinned=False, ttl=50.0)
    other = new(durable, "b")
    gone = new(durable, "b")
    engine.delete_session(gone, "b")
    before = {info.id: info for tenant in "ab" for info in engine.list_sessions(tenant)}
    texts = {info.id: durable.tokens(info.id, "b" if info.id == other else "a") for info in before.values()}
    durable.restart()
    engine = durable.run.engine
    after = {info.id: info for tenant in "ab" for info in engine.list_sessions(tenant)}
    assert list(after) == list(before) == [first, fork, grandchild, other]
    assert {info.id: durable.tokens(info.id, "b" if info.id == other else "a") for info in after.values()} == texts
    for info in after.values():
        was = before[info.id]
        assert (info.tokens, info.parent, info.pinned) == (was.tokens, was.parent, was.pinned)
        assert (info.created, info.used, info.busy) == (was.created, was.used, False)
        assert info.ttl == (None if was.ttl is None else pytest.approx(was.ttl))
    shared = set(durable.session(first, "a").blocks) & set(durable.session(fork, "a").blocks)
    assert len(shared) == (len(FIRST) + 4) // durable.blocks.layout.text_per_block
    assert durable.session(fork, "a").blocks == durable.session(grandchild, "a").blocks
    for session in (first, fork, grandchild):
        durable.turn(session, SECOND, 4, "a")


def test_sessions_whose_time_was_over_while_the_server_was_down_go(one: Durable) -> None:
    short, pinned = new(one, ttl=0.05), new(one, ttl=0.05, pinned=True)
    one.restart()
    one.turn(pinned, FIRST, 2)
    one.run.ask(FIRST)
    assert [info.id for info in one.run.engine.list_sessions("")] == [pinned]
    one.restart()
    assert [info.id for info in one.run.engine.list_sessions("")] == [pinned]
    assert short not in {record.id for record in one.archive.catalogue.sessions()}


def test_blocks_of_deleted_sessions_are_free_after_a_restart(one: Durable) -> None:
    session = new(one)
    one.turn(session, FIRST, 2)
    one.run.ask(SECOND)
    assert one.blocks.tier.used
    one.run.engine.delete_session(session, "")
    one.restart()
    assert one.blocks.tier.used == 0
    one.check()
    assert one.archive.catalogue.blocks(one.archive.fingerprint) == {}


def test_stopping_twice_does_no_harm(one: Durable) -> None:
    session = new(one)
    one.turn(session, FIRST, 2)
    one.stop()
    one.stop()
    assert one.run.engine.stats().running == 0
    one.start()
    one.turn(session, SECOND, 2)


def test_a_smaller_disk_keeps_what_fits(one: Durable) -> None:
    """Slots beyond it are forgotten, and are there again when it is as large as before."""
    first, second = new(one), new(one)
    one.turn(first, FIRST, 2)
    one.turn(second, SECOND * 3, 2)
    one.flush()
    small = 16 * (one.archive.disk.record_bytes + one.archive.disk._entry.itemsize) + 2 * 4096
    one.restart(disk_kv_bytes=small)
    assert one.blocks.tier.capacity == 16
    one.turn(first, [9], 2)
    one.check()
    one.restart()
    for session in (first, second):
        one.turn(session, [9], 2)
    assert one.run.engine.stats().damaged == 0
    one.check()


# -- sharing -------------------------------------------------------------------------------------------------


def test_a_fork_allocates_no_block(durable: Durable) -> None:
    session = new(durable)
    durable.turn(session, FIRST, 1)
    used = durable.blocks.tier.used
    forks = [durable.run.engine.fork_session(session, "").id for _ in range(5)]
    open_block = len(durable.session(session).blocks) - durable.session(session).sealed
    assert durable.blocks.tier.used == used
    durable.restart()
    assert durable.blocks.tier.used == used - open_block
    for fork in forks:
        durable.turn(fork, SECOND, 2)


def test_sessions_that_computed_the_same_text_have_the_same_blocks(durable: Durable) -> None:
    first, second = new(durable), new(durable)
    for part in (FIRST[:50], FIRST[50:]):
        durable.turn(first, part, 0)
    used = durable.blocks.tier.used
    durable.turn(second, FIRST, 0)
    count = durable.session(first).sealed
    assert durable.session(first).blocks[:count] == durable.session(second).blocks[:count]
    assert durable.blocks.tier.used <= used + 1
    for session in (first, second):
        durable.turn(session, SECOND, 4)


def test_a_session_meets_the_blocks_of_one_that_nobody_has_woken(durable: Durable) -> None:
    """After a restart the same text is computed once more in another session: what is stored is used, and whole."""
    first = new(durable)
    durable.turn(first, FIRST + SECOND, 2)
    durable.restart()
    second = new(durable)
    durable.turn(second, FIRST, 2)
    durable.turn(second, SECOND, 2)
    blocks = len(FIRST) // durable.blocks.layout.text_per_block
    assert durable.session(first).blocks[:blocks] == durable.session(second).blocks[:blocks]
    assert durable.run.engine.stats().damaged == 0
    assert durable.turn(first, [9], 2).end.usage.cached_tokens == sealed(durable, len(FIRST + SECOND) + 1)


def test_prompts_share_what_a_session_left(durable: Durable) -> None:
    session = new(durable)
    durable.turn(session, FIRST, 2)
    durable.restart()
    used = durable.blocks.tier.used
    request = durable.run.ask(FIRST, max_tokens=3)
    assert request.tokens() == durable.answer(FIRST, 3)
    assert request.end.usage.cached_tokens == sealed(durable, len(FIRST) - 1)
    assert durable.blocks.tier.used <= used + 2
    durable.check()


def test_tenants_share_nothing(durable: Durable) -> None:
    mine, yours = new(durable, "a"), new(durable, "b")
    durable.turn(mine, FIRST, 1, "a")
    for _ in range(2):
        assert durable.run.ask(FIRST, tenant="c", max_tokens=1).end.usage.cached_tokens in (0, sealed(durable, 89))
        assert durable.turn(yours, FIRST, 1, "b").end.usage.cached_tokens == max(0, durable_before(durable, yours))
        blocks = [set(durable.session(id, tenant).blocks) for id, tenant in ((mine, "a"), (yours, "b"))]
        assert not blocks[0] & blocks[1]
        durable.restart()


def durable_before(durable: Durable, session: str) -> int:
    """Tokens that were cached before the last turn of 91 tokens in the tenant's session."""
    return sealed(durable, len(durable.tokens(session, "b")) - 91 - 1 + (len(durable.tokens(session, "b")) == 91))


# -- other settings and other models -------------------------------------------------------------------------


def test_other_settings_read_no_foreign_block(one: Durable) -> None:
    session = new(one)
    text = FIRST + one.turn(session, FIRST, 5).tokens()
    one.restart(blocks_per_head=2)
    assert one.tokens(session) == text
    request = one.run.ask(SECOND, session=session, max_tokens=4)
    assert request.end.usage.cached_tokens == 0
    alone = {**one.reading, "blocks_per_head": 2, "kv_bytes": 32 << 20, "prefix_cache": False}
    other = one._started(alone)
    assert request.tokens() == other.ask(text + SECOND, max_tokens=4).tokens()
    other.engine.stop()
    text += SECOND + request.tokens()
    one.check()
    one.restart()
    assert one.tokens(session) == text
    one.turn(session, SECOND, 4)
    one.check()
    one.restart(blocks_per_head=2)
    assert one.tokens(session)[: len(text)] == text
    assert one.run.ask([9], session=session, max_tokens=1).end.usage.cached_tokens == len(text) // 8 * 8
    assert one.run.engine.stats().damaged == 0


def test_another_model_finds_no_session(one: Durable, tmp_path: Path, make: Make) -> None:
    session = new(one)
    one.turn(session, FIRST, 2)
    one.stop()
    other = make(save_model("llama", tmp_path / "other", initializer_range=0.05))
    assert other.run.engine.list_sessions("") == []
    assert other.run.ask(FIRST, max_tokens=2).end.usage.cached_tokens == 0
    theirs = new(other)
    other.turn(theirs, FIRST, 2)
    other.stop()
    one.start()
    assert [info.id for info in one.run.engine.list_sessions("")] == [session]
    kept = sealed(one, len(FIRST) + 1)
    assert one.turn(session, SECOND, 2).end.usage.cached_tokens == kept
    one.stop()
    other.start()
    assert [info.id for info in other.run.engine.list_sessions("")] == [theirs]
    other.turn(theirs, SECOND, 2)


def test_the_model_is_known_by_its_weights_not_its_folder(one: Durable, tmp_path: Path, make: Make) -> None:
    session = new(one)
    one.turn(session, FIRST, 2)
    one.stop()
    same = make(save_model("llama", tmp_path / "copy"))
    assert same.turn(session, SECOND, 2).end.usage.cached_tokens == sealed(one, len(FIRST) + 1)


# -- room ----------------------------------------------------------------------------------------------------


def test_a_second_engine_is_refused(one: Durable) -> None:
    with pytest.raises(InvalidParameter, match="another process uses"):
        one._started({**one.config, "kv_bytes": BLOCKS * one.block_bytes})


def test_sessions_larger_than_the_memory(one: Durable) -> None:
    """Several of them, in turn and together."""
    sessions = [new(one) for _ in range(3)]
    limit = one.run.engine.description.max_session_tokens
    length = min(240, limit - 40)
    for number, session in enumerate(sessions):
        one.turn(session, random_tokens(length, seed=number), 3)
    requests = [one.run.submit([9], session=session, max_tokens=5) for session in sessions]
    for session, request in zip(sessions, requests, strict=True):
        told = request.result().tokens()
        assert told == one.answer(one.tokens(session)[: -len(told)], 5)
    with pytest.raises(SessionTooLong):
        one.run.ask(FIRST, session=sessions[0], max_tokens=limit)
    one.check()


def test_a_disk_full_of_pinned_sessions_has_no_room_for_new_work(make: Make, tiny_folder: Path) -> None:
    durable = make(tiny_folder, disk_kv_bytes=44 * 16384)
    capacity = durable.blocks.tier.capacity
    pinned = new(durable, pinned=True)
    length = (capacity - 6) * 8
    durable.turn(pinned, random_tokens(length, seed=3), 2)
    with pytest.raises(OutOfRoom):
        durable.run.ask(FIRST, max_tokens=2)
    with pytest.raises(OutOfRoom):
        durable.turn(new(durable), FIRST, 2)
    durable.turn(pinned, [9], 5)  # what there is goes on
    assert durable.run.ask(SECOND[:20], max_tokens=4).tokens() == durable.answer(SECOND[:20], 4)
    durable.restart()
    with pytest.raises(OutOfRoom):
        durable.run.ask(FIRST, max_tokens=2)
    durable.turn(pinned, [9], 5)
    durable.run.engine.change_session(pinned, "", pinned=False)
    assert durable.run.ask(FIRST, max_tokens=2).tokens() == durable.answer(FIRST, 2)
    assert durable.run.engine.stats().evictions["room"] == 1
    durable.turn(pinned, [9], 3)  # its text stayed
    durable.check()


def test_what_runs_together_leaves_memory_to_what_is_read(one: Durable) -> None:
    """The indexes of two such sessions would take more than half of it: the second one waits for the first."""
    longest = one.blocks.longest
    run, text = one.run, random_tokens((longest - 20) * one.blocks.layout.text_per_block, seed=3)
    run.gate.close()
    both = [run.submit(text[shift:], session=new(one), max_tokens=2) for shift in (0, 1)]
    run.gate.wait()
    stats = run.engine.stats()
    assert (stats.running, stats.waiting) == (1, 1)
    run.gate.open()
    assert [len(request.result().tokens()) for request in both] == [2, 2]


def test_what_cannot_leave_and_what_is_read_fit_at_least(one: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the least memory, half of it taken by landmarks: four prompts at once whose parts end within blocks."""
    config, layout = EngineConfig(**{**one.config, "step_tokens": 63}), one.blocks.layout
    least = least_blocks(config, layout, config.retrieval(one.model))
    with pytest.raises(InvalidParameter, match=rf"^kv_bytes: must hold {2 * least} blocks"):
        one.restart(2 * least - 1, step_tokens=63)
    share = PagedTier.yield_bytes
    monkeypatch.setattr(PagedTier, "yield_bytes", lambda tier, _: share(tier, tier.memory_bytes))
    run = one.start(2 * least, step_tokens=63)
    texts = {new(one): random_tokens(96, seed) for seed in range(4)}
    for session, text in texts.items():
        run.ask(text, session=session, max_tokens=0)
    for lengths in itertools.islice(itertools.permutations([100, 9, 9, 9]), 0, None, 5):
        more = {session: random_tokens(length, length) for session, length in zip(texts, lengths, strict=True)}
        with run.engine._changed:
            requests = [run.submit(tokens, session=session, max_tokens=2) for session, tokens in more.items()]
        for session, request in zip(texts, requests, strict=True):
            texts[session] += more[session]
            texts[session] += request.result().tokens()
            assert texts[session][-2:] == one.answer(texts[session][:-2], 2)
    frames = one.blocks.tier
    assert isinstance(frames, PagedTier)
    assert frames._pages.limit == least * frames._pages.block_pages
    everything = RetrievalParams(blocks_per_head=4096)
    assert len(run.ask([7], session=session, retrieval=everything).tokens()) == 8
