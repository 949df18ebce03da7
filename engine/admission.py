"""May a generation run: refuse at once what never can, hold back what must wait. Plain Python.

Owns the checks and the count of blocks that are promised to running sequences. Does not run anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import cycle, islice

from cache import Session, SessionRegistry
from engine.description import ModelDescription
from engine.errors import EmptyPrompt, InvalidParameter, OutOfRoom, QuotaExceeded, SessionTooLong
from engine.requests import Generation, Quota, Search
from engine.sequence import Sequence as Running


class Admission:
    """Checks against one model and one store.

    Args:
        description: the model's limits
        registry: whose blocks are counted
        max_choices: largest `n` of a generation
        quota: what a tenant may keep; asked each time, for it may change
    """

    def __init__(
        self,
        description: ModelDescription,
        registry: SessionRegistry,
        max_choices: int,
        quota: Callable[[str], Quota],
    ) -> None:
        self._quota = quota
        self._description = description
        self._registry = registry
        self._store = registry.store
        self._max_choices = max_choices

    def validate(self, generation: Generation, session: Session | None) -> None:
        """Raise what is wrong with a generation; `session` is the one that it continues."""
        held, computed = (len(session.tokens), session.computed) if session else (0, 0)
        if not generation.tokens and (held == computed or generation.sampling.max_tokens == 0):
            raise EmptyPrompt("the prompt is empty and nothing is left to read; give at least one token")
        self._validate_ids(generation.tokens, "prompt")
        self._validate_sampling(generation)
        if not 1 <= generation.n <= self._max_choices:
            raise InvalidParameter("n", f"must lie between 1 and {self._max_choices}")
        if generation.n > 1 and session is not None:
            raise InvalidParameter("n", "must be 1 in a session, which has one future; fork it for more")
        if session is not None and generation.sampling.prompt_logprobs is not None:
            raise InvalidParameter("prompt_logprobs", "a session's past is not computed again; leave it out")
        more = len(generation.tokens) + generation.sampling.max_tokens
        self.validate_length(held + more)
        if session is not None:  # a prompt of its own is not kept
            self._validate_quota(generation.tenant, more)
        self._validate_room(self._whole(generation, session), session)

    def validate_text(self, tokens: Sequence[int], tenant: str) -> None:
        """Raise why a tenant cannot keep one more session, of these tokens."""
        self.validate_length(len(tokens))
        self._validate_ids(tokens, "tokens")
        self.validate_new_session(tenant)
        self._validate_quota(tenant, len(tokens))
        self._validate_room(self._store.layout.blocks(len(tokens)), None)

    def validate_length(self, wanted: int) -> None:
        """Raise if no session may hold so many text tokens."""
        if wanted > self._description.max_session_tokens:
            raise SessionTooLong(wanted, self._description.max_session_tokens)

    def _validate_ids(self, tokens: Sequence[int], parameter: str) -> None:
        vocabulary, landmark = self._description.vocab_size, self._description.landmark_token_id
        if tokens and not 0 <= min(tokens) <= max(tokens) < vocabulary:
            raise InvalidParameter(parameter, f"token ids must lie between 0 and {vocabulary - 1}")
        if landmark is not None and landmark in tokens:
            raise InvalidParameter(parameter, f"token {landmark} is the model's landmark and cannot be given")

    def _validate_sampling(self, generation: Generation) -> None:
        vocabulary = self._description.vocab_size
        for name in ("logit_bias", "stop_token_ids"):
            if not all(0 <= token < vocabulary for token in getattr(generation.sampling, name)):
                raise InvalidParameter(name, f"token ids must lie between 0 and {vocabulary - 1}")

    def validate_new_session(self, tenant: str) -> None:
        """Raise QuotaExceeded if a tenant has as many sessions as it may have."""
        most = self._quota(tenant).sessions
        if most is not None and len(self._registry.named(tenant)) >= most:
            raise QuotaExceeded(f"you have {most} sessions and may not have more; delete some")

    def _validate_quota(self, tenant: str, more: int) -> None:
        """What a tenant keeps is what its named sessions hold."""
        most = self._quota(tenant).tokens
        if most is None:
            return
        if more > most:  # whatever is deleted
            raise SessionTooLong(more, most)
        wanted = more + sum(len(each.tokens) for each in self._registry.named(tenant))
        if wanted > most:
            raise QuotaExceeded(f"your sessions would hold {wanted} tokens together, the limit is {most}; delete some")

    def _validate_room(self, needed: int, session: Session | None) -> None:
        """Refuse what could not run even if everything that may end had ended."""
        others = {slot for s in self._registry.held() if s is not session for slot in s.blocks}
        others -= set(session.blocks if session else ())  # a fork's past is not needed a second time
        room = self._store.tier.capacity - len(others)
        if needed > room:
            raise OutOfRoom(
                f"the request needs {needed} blocks of the cache and the kept sessions leave {room}; "
                "delete sessions or give the server more memory for keys and values"
            )

    def _whole(self, generation: Generation, session: Session | None) -> int:
        """Blocks that a generation and its session come to at the end."""
        prompt = (len(session.tokens) if session else 0) + len(generation.tokens)
        return self._store.layout.blocks(prompt + generation.sampling.max_tokens) + self._further(generation)

    def _further(self, generation: Generation) -> int:
        """Blocks of the further choices: each has its own for its answer and for the prompt's open block."""
        return (generation.n - 1) * (self._store.layout.blocks(generation.sampling.max_tokens) + 2)

    def _promised(self, sequence: Running) -> int:
        """Blocks that a running sequence may still take, with those of the choices that have not branched off it."""
        own = self._store.layout.blocks(sequence.limit) - len(sequence.session.blocks)
        return own + (self._further(sequence.generation) if sequence.choices > 1 else 0)

    def apart(self, generation: Generation, session: Session) -> Generation:
        """A search with so much of the session's end once more before its prompt that no block of it is recent."""
        assert generation.search is not None, "only a search is set apart"
        layout, held = self._store.layout, len(session.tokens)
        blocks = -(-held // layout.text_per_block) + self._description.retrieval.recent_blocks
        count = blocks * layout.text_per_block - held if held else 0
        again = tuple(islice(cycle(session.tokens[-count:]), count))
        first, last = generation.search.first + count, generation.search.last + count
        return dataclasses.replace(generation, tokens=again + generation.tokens, search=Search(first, last, held))

    def fits(self, generation: Generation, session: Session | None, running: list[Running]) -> bool:
        """Whether the generation can start beside what runs, dropping kept anonymous prompts if need be."""
        if self._store.archive is not None and running:  # their indexes share half of the memory
            blocks = sum(self._store.layout.blocks(sequence.limit) for sequence in running)
            if blocks + self._whole(generation, session) > self._store.longest:
                return False
        return self.has_room(self._whole(generation, session) - (len(session.blocks) if session else 0), running)

    def has_room(self, needed: int, running: list[Running]) -> bool:
        """Whether so many blocks are free beside what is promised to what runs, dropping what may go if need be."""
        promised = sum(self._promised(sequence) for sequence in running)
        while needed + promised > self._store.free:
            if not self._registry.evict():
                return False
        return True
