"""`Sequence`: one choice of one generation, in flight over a Session. Plain Python.

Its phase follows from counters: while the session has more tokens than are computed beyond the next one it
reads the prompt, after that it decodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cache import CacheLayout, Reading, Session
from engine.audit import Audit, Regulator
from engine.errors import EngineError
from engine.requests import (
    AuditReport,
    Event,
    Failed,
    Finished,
    Generation,
    Progress,
    RetrievalParams,
    Timing,
    Token,
    Usage,
)
from engine.step import Span, with_landmarks
from engine.tally import Lookup, Tally

SCORED = 128
"""Tokens of a step when the prompt is scored: each has a row as long as the vocabulary."""


@dataclass(frozen=True)
class Defaults:
    """How the server reads if a request does not say: as Span takes it."""

    blocks_per_head: int
    top_p: float | None = None
    audit_rate: float = 0.0

    @property
    def reading(self) -> Reading:
        return Reading(self.blocks_per_head, self.top_p)

    def of(self, retrieval: RetrievalParams, raised: int | None) -> Reading | None:
        """How the tokens of a request read, in a session whose blocks_per_head an audit may have raised."""
        if retrieval.exact:
            return Reading(None)
        fetched = retrieval.blocks_per_head
        if fetched is None:
            fetched = max(self.blocks_per_head, raised or 0)
        audited = retrieval.min_mass is not None
        if audited:
            fetched = max(fetched, raised or 0)
        # The server's top_p gives way to an audit, which measures what it estimates.
        given_way = retrieval.top_p is not None or audited or raised is not None
        return self.own(Reading(fetched, retrieval.top_p if given_way else self.top_p))

    def own(self, reading: Reading) -> Reading | None:
        """None if it is the server's."""
        return None if reading == self.reading else reading


@dataclass(frozen=True)
class Waiting:
    """A generation that has not started."""

    generation: Generation
    deliver: Callable[[Event], None]
    submitted: float
    aside: Session | None = None  # a past of its own, for what must not change the session

    def ended(self, error: EngineError | None) -> list[Event]:
        """What there is to tell if it never starts: what is wrong, or that it was cancelled."""
        if error is not None:
            return [Failed(error)]
        generation, timing = self.generation, Timing(time.perf_counter() - self.submitted, 0.0, 0.0)
        usage = Usage(len(generation.tokens), 0, 0)
        return [Finished(index, "cancelled", usage, timing) for index in range(generation.n)]


class Sequence:
    """One choice.

    Args:
        generation: the request
        index: the choice's number
        session: where it reads and writes; already holds the prompt
        deliver: takes its events
        submitted: when the request came in, as time.perf_counter()
        defaults: how the server reads
    """

    def __init__(
        self,
        generation: Generation,
        index: int,
        session: Session,
        deliver: Callable[[Event], None],
        submitted: float,
        defaults: Defaults,
    ) -> None:
        self.generation = generation
        self.index = index
        self.session = session
        self.deliver = deliver
        self.submitted = submitted
        self.started = time.perf_counter()
        self.first_token: float | None = None
        self.prompt = len(session.tokens)
        self.cached = session.computed
        self.generated: list[int] = []
        self.scored = 0  # tokens of the prompt whose log-probabilities are told
        self.constraint = generation.constraint() if generation.constraint else None
        retrieval = generation.retrieval
        self.tally: Tally | None = Tally() if retrieval.provenance else None
        self.counted = (self.prompt - 1, self.limit + 1)
        """Text tokens [first, last) whose reading is told: it is for the answer from the prompt's last token on."""
        if (search := generation.search) is not None:
            before = self.prompt - len(generation.tokens)
            self.tally, self.counted = Lookup(search.held), (before + search.first, before + search.last)
        self.audit = Audit() if retrieval.audit or retrieval.min_mass is not None else None
        self.blocks_per_head: int | None = None  # of the last span
        self._defaults = defaults
        self._reading = defaults.of(retrieval, session.blocks_per_head)  # of the next token that it generates
        self.regulator: Regulator | None = None
        if retrieval.min_mass is not None and not retrieval.exact:
            begun = self._reading or defaults.reading
            assert begun.blocks_per_head is not None, "only `exact` fetches everything"
            self.regulator = Regulator(retrieval.min_mass, begun.blocks_per_head, session)

    def branch(self, index: int, session: Session) -> Sequence:
        """Another choice of the generation, in a session of its own that holds the prompt, too."""
        choice = Sequence(self.generation, index, session, self.deliver, self.submitted, self._defaults)
        choice.cached = self.cached
        return choice

    @property
    def limit(self) -> int:
        """Text tokens of the session when the generation has reached its maximum."""
        return self.prompt + self.generation.sampling.max_tokens

    @property
    def remaining(self) -> int:
        """Text tokens that are not computed yet."""
        return len(self.session.tokens) - self.session.computed

    @property
    def reading(self) -> bool:
        """Still reads the prompt."""
        return not self.generated

    @property
    def behind(self) -> bool:
        """Has more to compute than the next token: its prompt, or what was stored and got lost."""
        return self.reading or self.remaining > 1

    @property
    def choices(self) -> int:
        """Choices that it stands for: all of its generation's until they branch off the prompt, then its own."""
        return self.generation.n if self.reading and self.index == 0 else 1

    @property
    def scores(self) -> bool:
        """Wants the log-probabilities of its prompt, and is reading it."""
        return self.reading and self.generation.sampling.prompt_logprobs is not None

    @property
    def samples(self) -> bool:
        """Wants a token after its prompt is read."""
        return self.generation.sampling.max_tokens > 0

    @property
    def penalises_prompt(self) -> bool:
        return self.generation.sampling.repetition_penalty != 1.0

    def spans(self, budget: int, landmark: int | None, layout: CacheLayout) -> list[Span]:
        """The next at most `budget` text tokens, a span for each run of tokens that are read alike.

        One of a single position goes alone, as decoding ones do: attention takes these together after all others.
        """
        spans: list[Span] = []
        end, last = self.session.computed, min(len(self.session.tokens), self.session.computed + budget)
        while end < last:
            span = self._span(end, last, landmark, layout)
            alone = self.scores or len(span.token_ids) == 1
            if not (alone and spans):
                spans.append(span)
            end = last if alone else span.end
        return spans

    def _span(self, start: int, last: int, landmark: int | None, layout: CacheLayout) -> Span:
        """Text tokens from `start` on, before `last`, all of which are read alike."""
        end = self.session.readings.end(start, last)
        if self.scores:
            end = min(end, start + SCORED)
        if self.tally or self.audit:
            end = min([end, *(edge for edge in self.counted if edge > start)])
        answers = self.counted[0] <= start < self.counted[1]
        reading = self.session.readings.at(start) or self._defaults.reading
        self.blocks_per_head = reading.blocks_per_head
        return Span(
            self.session,
            start,
            end,
            with_landmarks(self.session.tokens[start:end].tolist(), start, landmark, layout),
            reading.blocks_per_head,
            self.tally if answers else None,
            reading.top_p,
            self.audit.rate if self.audit and answers else self._defaults.audit_rate,
            self.audit if answers else None,
        )

    def next_reading(self) -> Reading | None:
        """How the next token reads: as the request asks for, or as far as the audit has raised it by now."""
        if self.regulator is not None:
            assert self.audit is not None
            raised = self.regulator.observe(self.audit.masses)
            self._reading = self._defaults.own(Reading(raised))
        return self._reading

    def allowed(self) -> bytes | None:
        """Which tokens may come next, as `Constraint` tells; None leaves it free."""
        return None if self.constraint is None else self.constraint.allowed()

    def progress(self) -> Progress:
        milliseconds = 1000 * (time.perf_counter() - self.started)
        return Progress(self.prompt, self.cached, self.session.computed, milliseconds)

    def take(self, token: Token, end_tokens: frozenset[int]) -> str | None:
        """Append a sampled token; the reason to finish, if there is one."""
        if self.first_token is None:
            self.first_token = time.perf_counter()
        self.generated.append(token.token)
        self.session.append([token.token], self.next_reading())
        sampling = self.generation.sampling
        if self.constraint is not None:
            self.constraint.accept(token.token)
        if token.token in sampling.stop_token_ids or (token.token in end_tokens and not sampling.ignore_eos):
            return "stop"
        full = len(self.generated) >= sampling.max_tokens
        if self.constraint is not None and self.constraint.ended and (full or sampling.ignore_eos or not end_tokens):
            return "stop"  # complete; for the end token that would follow there is no room, or no need
        return "length" if full else None

    def end(self, event: Finished | Failed) -> None:
        """Deliver the closing event; if it has finished, of the choices that it stands for, too."""
        self.deliver(event)
        if isinstance(event, Finished):
            for index in range(1, self.choices):
                self.deliver(replace(event, index=index))

    def finished(self, reason: str) -> Finished:
        """The closing event."""
        now = time.perf_counter()
        first = self.first_token or now
        timing = Timing(self.started - self.submitted, first - self.started, now - first)
        usage = Usage(self.prompt, self.cached, len(self.generated))
        passages = self.generation.retrieval.passages
        retrieval = self.tally.report(self.session.layout, passages) if self.tally else None
        return Finished(self.index, reason, usage, timing, retrieval, self._audited())

    def _audited(self) -> AuditReport | None:
        """What the audit found, if it was asked for."""
        if self.audit is None:
            return None
        self.next_reading()  # the last step counts for the session's next answer
        masses = self.audit.masses
        mean, lowest = (sum(masses) / len(masses), min(masses)) if masses else (None, None)
        return AuditReport(mean, lowest, len(masses), self.blocks_per_head)
