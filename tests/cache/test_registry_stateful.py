"""Any order of requests, forks, rewinds, deletions and evictions, against a model made of plain lists and sets.

A session's keys follow from its tokens, so sharing a block with the wrong past shows at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from cache import OutOfBlocks, Session, SessionRegistry
from tests.cache.filling import LAYOUT, SHAPE, compute, new_store, verify

TEXT = LAYOUT.text_per_block
CAPACITY = 14
TENANTS = st.sampled_from("ab")
TEXTS = st.lists(st.integers(0, 1), min_size=1, max_size=5 * TEXT)  # two letters: prefixes often agree

Owned = tuple[str, Session]


class Sessions(RuleBasedStateMachine):
    """The registry beside a model: tokens by session, and which sessions were published with how many blocks."""

    named: Bundle[Owned] = Bundle("named")

    @initialize()
    def begin(self) -> None:
        self.registry = SessionRegistry(new_store(CAPACITY), [SHAPE, None], b"model")
        self.truth: dict[Session, list[int]] = {}
        self.published: dict[Session, tuple[str, int]] = {}  # kept ones too, in no order

    def known(self, tenant: str, tokens: Sequence[int]) -> int:
        """Longest sealed prefix of `tokens`, short of the last one, that a published session of the tenant holds."""
        holders = [(list(s.tokens), sealed) for s, (owner, sealed) in self.published.items() if owner == tenant]
        lengths = [0, *range(TEXT, len(tokens), TEXT)]
        return max(
            n for n in lengths if n == 0 or any(n <= k * TEXT and held[:n] == list(tokens[:n]) for held, k in holders)
        )

    def make(self, session: Session, text: int) -> None:
        """Compute, dropping kept prompts for it as the engine does; without room the rest stays uncomputed."""
        while True:
            try:
                return compute(session, text)
            except OutOfBlocks:
                if not self.drop_one():
                    return session.trim()

    @rule()
    def evict(self) -> None:
        self.drop_one()

    def drop_one(self) -> bool:
        done = self.registry.evict()
        dropped = [s for s in self.published if not s.blocks and s.sealed]
        assert len(dropped) <= 1
        for session in dropped:
            assert session not in self.truth, "a named session was evicted"
            del self.published[session]
        return done

    @rule(target=named, tenant=TENANTS)
    def create(self, tenant: str) -> Owned:
        session = self.registry.create(tenant)
        self.truth[session] = []
        return tenant, session

    @rule(owned=named, tokens=TEXTS, share=st.floats(0, 1))
    def append(self, owned: Owned, tokens: list[int], share: float) -> None:
        """A turn; with a share below 1 it is cut off while it is read."""
        tenant, session = owned
        session.append(tokens)
        self.truth[session] += tokens
        left = len(session.tokens) - session.computed
        self.make(session, session.computed + int(share * left))
        self.registry.publish(session)
        if session.sealed:
            self.published[session] = (tenant, session.sealed)

    @rule(owned=named, share=st.floats(0, 1))
    def cut(self, owned: Owned, share: float) -> None:
        """Back to some token; nobody finds what is forgotten by this session any more."""
        tenant, session = owned
        keep = round(share * len(self.truth[session]))
        whole = session.computed if keep == len(self.truth[session]) else min(session.computed, keep) // TEXT * TEXT
        self.registry.cut(session, keep)
        assert session.computed == whole, "more than the open block is lost, or something stays"
        del self.truth[session][keep:]
        if session in self.published:
            held = min(self.published.pop(session)[1], session.sealed)
            self.published |= {session: (tenant, held)} if held else {}

    @rule(target=named, owned=named)
    def fork(self, owned: Owned) -> Owned:
        tenant, session = owned
        fork = self.registry.fork(session)
        assert fork.blocks == session.blocks[: session.sealed]
        self.truth[fork] = list(self.truth[session])
        return tenant, fork

    @rule(owned=consumes(named))
    def delete(self, owned: Owned) -> None:
        tenant, session = owned
        self.registry.delete(session)
        assert self.registry.get(session.id, tenant) is None
        del self.truth[session]
        self.published.pop(session, None)

    @rule(tenant=TENANTS, tokens=TEXTS, keep=st.booleans(), choices=st.integers(1, 2))
    def request(self, tenant: str, tokens: list[int], keep: bool, choices: int) -> None:
        """An anonymous prompt, perhaps with a second answer that branches off."""
        expected = self.known(tenant, tokens)
        session = self.registry.match(tokens, tenant)
        assert session.computed == expected
        assert session.tokens.tolist() == tokens[:expected]
        session.append(tokens[expected:])
        self.make(session, len(tokens))
        verify(session)
        for _ in range(1, choices if session.computed == len(tokens) else 1):
            branch = self.registry.branch(session)
            branch.append([7])
            self.make(branch, len(branch.tokens))
            verify(branch)
            branch.close()
        if keep:
            self.registry.keep(session)
            if session.sealed:
                self.published[session] = (tenant, session.sealed)
        else:
            session.close()

    @invariant()
    def no_block_is_lost_or_counted_wrongly(self) -> None:
        self.registry.check()

    @invariant()
    def sessions_hold_what_their_tokens_imply(self) -> None:
        for session, tokens in self.truth.items():
            assert session.tokens.tolist() == tokens
            verify(session)
        for session in self.published:
            verify(session)

    @invariant()
    def tenants_see_their_own_sessions_only(self) -> None:
        listed = [self.registry.named(tenant) for tenant in "ab"]
        assert set(itertools.chain(*listed)) == set(self.truth)
        for tenant, mine, other in zip("ab", listed, "ba", strict=True):
            assert all(self.registry.get(session.id, tenant) is session for session in mine)
            assert not any(self.registry.get(session.id, other) for session in mine)

    def teardown(self) -> None:
        """In the end everything can be given back."""
        for tenant in "ab":
            for session in self.registry.named(tenant):
                self.registry.delete(session)
        while self.registry.evict():
            pass
        assert self.registry.store.tier.used == 0


Sessions.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestSessions = Sessions.TestCase
