"""Any order of turns, rewinds, forks, files, deletions, evictions and restarts on one folder, against lists of tokens.

Every answer is compared with that of an engine which computes the whole text in one go and keeps nothing.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from engine import Generation, RetrievalParams, SamplingParams, Search, Told
from tests.cache.late import LateCopies
from tests.engine.durable import BLOCKS, PLAIN, Asked, Durable
from tests.engine.running import Request
from tests.models import random_tokens

TENANTS = st.sampled_from("ab")
SEEDS = st.integers(0, 3)  # few texts: prefixes often agree
LENGTHS = st.sampled_from([0, 1, 7, 8, 15, 40, 90])
COUNTS = st.sampled_from([0, 1, 5, 9])
ASKED = st.sampled_from(
    [PLAIN, PLAIN, RetrievalParams(blocks_per_head=1), RetrievalParams(exact=True), RetrievalParams(top_p=0.5)]
)

Owned = tuple[str, str]


class Sessions(RuleBasedStateMachine):
    """Engines on a folder beside the tokens that each session should have."""

    folder: Path
    window = False
    sessions: Bundle[Owned] = Bundle("sessions")

    @initialize()
    def begin(self) -> None:
        self.store = Path(tempfile.mkdtemp())
        self.durable = Durable(self.folder, self.store, window=self.window)
        self.truth: dict[Owned, list[int]] = {}
        self.asked: dict[Owned, Asked] = {}
        self.turns: dict[Owned, list[tuple[int, int, int]]] = {}
        self.pinned: dict[Owned, bool] = {}
        self.fleeting: set[Owned] = set()

    # -- what clients do -------------------------------------------------------------------------------------

    @rule(target=sessions, tenant=TENANTS, pinned=st.booleans(), fleeting=st.booleans())
    def create(self, tenant: str, pinned: bool, fleeting: bool) -> Owned:
        engine = self.durable.run.engine
        owned = tenant, engine.create_session(tenant, pinned=pinned, ttl=3600.0 if fleeting else None).id
        self.truth[owned], self.asked[owned], self.turns[owned], self.pinned[owned] = [], [], [], pinned
        if fleeting:
            self.fleeting.add(owned)
        return owned

    @rule(owned=sessions, seed=SEEDS, length=LENGTHS, count=COUNTS, retrieval=ASKED)
    def turn(self, owned: Owned, seed: int, length: int, count: int, retrieval: RetrievalParams) -> None:
        if owned not in self.truth:
            return
        tenant, session = owned
        left = len(self.truth[owned]) - self.durable.session(session, tenant).computed
        if not length and not (left and count):
            return
        tokens, past = random_tokens(length, seed), self.asked[owned]
        retrieval = retrieval if length else past[-1]
        request = self.durable.turn(session, tokens, count, tenant, past, retrieval)
        start = len(self.truth[owned])
        self.truth[owned] += tokens + request.tokens()
        past += [retrieval] * (len(self.truth[owned]) - start)
        if len(self.truth[owned]) > start:
            self.turns[owned].append((start, start + length, len(self.truth[owned])))

    @rule(owned=sessions, share=st.floats(0, 1), whole=st.booleans())
    def rewind(self, owned: Owned, share: float, whole: bool) -> None:
        """Back to the beginning of a turn, or to any token."""
        if owned not in self.truth:
            return
        tenant, session = owned
        turns, keep = self.turns[owned], round(share * len(self.truth[owned]))
        if whole and turns:
            turn = round(share * (len(turns) - 1))
            keep = turns[turn][0]
            self.durable.run.engine.rewind_session(session, tenant, turn=turn)
        else:
            self.durable.run.engine.rewind_session(session, tenant, tokens=keep)
        del self.truth[owned][keep:], self.asked[owned][keep:]
        left = [(start, min(answer, keep), min(end, keep)) for start, answer, end in turns if start < keep]
        self.turns[owned] = left

    @rule(tenant=TENANTS, seed=SEEDS, length=st.integers(1, 90), choices=st.integers(1, 2), retrieval=ASKED)
    def ask(self, tenant: str, seed: int, length: int, choices: int, retrieval: RetrievalParams) -> None:
        """A prompt without a session."""
        tokens = random_tokens(length, seed)
        request = self.durable.run.ask(tokens, tenant=tenant, max_tokens=3, n=choices, retrieval=retrieval)
        for index in range(choices):
            assert request.tokens(index) == self.durable.answer(tokens, 3, [retrieval] * length)

    @rule(target=sessions, owned=sessions)
    def fork(self, owned: Owned) -> Owned:
        if owned not in self.truth:
            return owned
        tenant, session = owned
        fork = tenant, self.durable.run.engine.fork_session(session, tenant).id
        self.copy(owned, fork)
        if owned in self.fleeting:
            self.fleeting.add(fork)
        return fork

    @rule(target=sessions, owned=sessions, tenant=TENANTS, kv=st.booleans())
    def carry(self, owned: Owned, tenant: str, kv: bool) -> Owned:
        """Out as a file, and in again, perhaps as somebody else's."""
        if owned not in self.truth:
            return owned
        engine, path = self.durable.run.engine, self.store / "session.cairn"
        sent = engine.export_session(owned[1], owned[0], told=Told(), kv=kv)
        path.write_bytes(sent.read(1 << 30))
        sent.close()
        info, restored, _ = engine.import_session(path, tenant, told=Told())
        path.unlink()
        assert restored % self.durable.blocks.layout.text_per_block == 0
        assert restored <= len(self.truth[owned]) * kv
        carried = tenant, info.id
        self.copy(owned, carried)
        return carried

    def copy(self, owned: Owned, to: Owned) -> None:
        self.truth[to], self.asked[to] = self.truth[owned][:], self.asked[owned][:]
        self.turns[to], self.pinned[to] = self.turns[owned][:], False

    @rule(owned=sessions, seed=SEEDS, length=st.integers(1, 20))
    def search(self, owned: Owned, seed: int, length: int) -> None:
        """Which leaves everything as it is."""
        if owned in self.truth:
            query, engine = tuple(random_tokens(length, seed)), self.durable.run.engine
            looking = Search(0, length)
            name, alone = owned[1], SamplingParams(max_tokens=0)
            request = Request(Generation("search", query, alone, session_id=name, tenant=owned[0], search=looking))
            engine.submit(request.generation, request.deliver)
            report = request.result().end.retrieval
            assert report is not None
            assert all(0 <= each.start < each.end <= len(self.truth[owned]) for each in report.passages)

    @rule(owned=consumes(sessions))
    def delete(self, owned: Owned) -> None:
        if owned in self.truth:
            self.durable.run.engine.delete_session(owned[1], owned[0])
            self.forget(owned)

    def forget(self, owned: Owned) -> None:
        del self.truth[owned], self.asked[owned], self.turns[owned], self.pinned[owned]
        self.fleeting.discard(owned)

    @rule(owned=sessions, pinned=st.booleans())
    def change(self, owned: Owned, pinned: bool) -> None:
        if owned in self.truth:
            self.durable.run.engine.change_session(owned[1], owned[0], pinned=pinned)
            self.pinned[owned] = pinned

    # -- what the server does --------------------------------------------------------------------------------

    @rule()
    def evict(self) -> None:
        self.durable.under_lock(self.durable.registry.evict)

    @rule(flush=st.booleans())
    def park(self, flush: bool) -> None:
        if flush:
            self.durable.flush()
        self.durable.under_lock(self.durable.registry.park)

    @rule()
    def expire(self) -> None:
        used = [self.durable.session(session, tenant).used for tenant, session in self.truth]
        self.durable.under_lock(lambda: self.durable.registry.expire(min(used, default=time.time()) + 3599.0))
        assert self.listed() == self.truth.keys(), "a session went too early"
        self.durable.under_lock(lambda: self.durable.registry.expire(time.time() + 3601.0))
        for owned in [owned for owned in self.fleeting if not self.pinned[owned]]:
            self.forget(owned)

    @rule(blocks=st.sampled_from([BLOCKS, BLOCKS + 1, 3 * BLOCKS]))
    def restart(self, blocks: int) -> None:
        self.durable.restart(blocks)

    @rule()
    def restart_again(self) -> None:
        self.durable.restart()
        self.durable.restart()

    # -- what holds ------------------------------------------------------------------------------------------

    def listed(self) -> set[Owned]:
        return {(tenant, info.id) for tenant in "ab" for info in self.durable.run.engine.list_sessions(tenant)}

    @invariant()
    def no_block_is_lost_or_counted_wrongly(self) -> None:
        self.durable.check()

    @invariant()
    def nothing_is_damaged(self) -> None:
        assert self.durable.run.engine.stats().damaged == 0

    @invariant()
    def sessions_are_those_of_the_clients(self) -> None:
        assert self.listed() == self.truth.keys()
        for (tenant, session), tokens in self.truth.items():
            assert self.durable.tokens(session, tenant) == tokens
            turns = self.durable.run.engine.session_turns(session, tenant)
            assert [(turn.start, turn.answer, turn.end) for turn in turns] == self.turns[tenant, session]
            assert [turn.index for turn in turns] == list(range(len(turns)))
            info = self.durable.run.engine.get_session(session, tenant)
            assert info.pinned == self.pinned[tenant, session]
            assert (info.ttl is not None) == ((tenant, session) in self.fleeting)

    def teardown(self) -> None:
        """In the end every session can go on, and everything can be given back."""
        if not hasattr(self, "durable"):
            return
        try:
            for tenant, session in self.truth:
                self.durable.turn(session, [9], 2, tenant, self.asked[tenant, session])
            for tenant, session in self.truth:
                self.durable.run.engine.delete_session(session, tenant)
            self.durable.restart()
            assert self.durable.blocks.tier.used == 0
        finally:
            self.durable.close()
            shutil.rmtree(self.store)


@pytest.fixture(params=["chosen", "trained", "through a window"])
def machine(
    request: pytest.FixtureRequest, tiny_folder: Path, landmark_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> type[Sessions]:
    """Sessions of two kinds of models; and, as on a GPU, of one whose copies come as late as they may."""
    monkeypatch.setattr("engine.budgets.copies_for", LateCopies)
    folder = landmark_folder if request.param == "trained" else tiny_folder
    return type("SessionsOfAModel", (Sessions,), {"folder": folder, "window": request.param == "through a window"})


def explore(machine: type[Sessions], examples: int, steps: int) -> None:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    chosen = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=slow)
    run_state_machine_as_test(machine, settings=chosen)


def test_any_order(machine: type[Sessions]) -> None:
    explore(machine, 12, 12)


@pytest.mark.slow
def test_any_long_order(machine: type[Sessions]) -> None:
    explore(machine, 150, 40)
