"""`Engine`: takes generations, runs steps on a thread of its own, delivers events.

Owns who runs and who waits. Sessions are its `Memory`'s, under whose lock everything changes; a forward pass runs
outside it, so asking for a session never waits for a step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from cache import DamagedBlock, OutOfBlocks, Session
from engine.admission import Admission
from engine.apart import Apart
from engine.assembly import choose_attention, describe, open_beside, open_registry, snapshot
from engine.config import EngineConfig
from engine.delivery import Deliver, Delivery
from engine.errors import ConstraintFailed, EngineError, EngineStopped, OutOfRoom, QueueFull
from engine.huggingface import LoadedModel
from engine.memory import FULL, Memory
from engine.passes import Pass
from engine.requests import Failed, Finished, Generation, Quota
from engine.runner import ModelRunner
from engine.sampler import Sampler, score
from engine.scheduler import Planned, Scheduler
from engine.sequence import Defaults, Sequence, Waiting
from engine.stats import EngineStats, StepReport
from engine.waker import Waker

logger = logging.getLogger(__name__)
IDLE_SECONDS = 1.0
"""How often an idle engine looks whether a session's time is over."""


class Engine(Memory):
    """See the module.

    Args:
        model: what runs
        config: the operator's choices
        observe: takes a report after each step, on the engine's thread
        quota: what a tenant's sessions may hold; None takes the same for all, from `config`
    """

    def __init__(
        self,
        model: LoadedModel,
        config: EngineConfig,
        *,
        observe: Callable[[StepReport], None] | None = None,
        quota: Callable[[str], Quota] | None = None,
    ) -> None:
        settings, layout = config.retrieval(model), config.layout(model)
        registry = open_registry(model, settings, config)
        self.description = describe(model, settings, config, registry.store)
        admission = Admission(self.description, registry, config.max_running, quota or config.quota)
        super().__init__(registry, admission, config.session_ttl)
        self._config, self._observe = config, observe
        self._store = registry.store
        self._runner = ModelRunner(model, choose_attention(model, settings, layout))
        threads, beside = torch.get_num_threads(), open_beside(model, settings, config, registry.store, self._wake)
        self._apart = Apart(threads, beside, Waker(registry, threads, self._wake))
        landmark = self.description.landmark_token_id
        self._hidden = [] if landmark is None else [landmark]
        self._defaults = Defaults(settings.blocks_per_head, settings.top_p, config.audit_rate)
        reads = self._apart.reads
        self._scheduler = Scheduler(config.step_tokens, config.decode_share, landmark, layout, apart=reads)
        self._waiting: deque[Waiting] = deque()
        self._cancelled: set[Sequence] = set()
        self._stopping = False
        self._delivery = Delivery()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    # -- from any thread -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to run steps."""
        self._thread.start()

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, finish what runs within `drain_seconds`, cancel the rest, end the thread."""
        with self._changed:
            self._accepting = False
            self._changed.wait_for(lambda: not (self._running or self._waiting), timeout=drain_seconds)
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._registry.close()

    def submit(self, generation: Generation, deliver: Deliver, told: Callable[[], None] | None = None) -> None:
        """Queue a generation; raises at once what is wrong with it.

        Args:
            deliver: takes the events on the engine's thread and must not block
            told: called, as that is, when a step has delivered all its events: to wake others once for many
        """
        deliver = deliver if told is None else self._delivery.to(deliver, told)
        with self._changed:
            self._check_accepting()
            name = generation.session_id
            session = None if name is None else self._idle_session(name, generation.tenant)
            if generation.search is not None:
                assert session is not None, "what is looked up is looked up in a session"
                generation = self._admission.apart(generation, session)
            self._admission.validate(generation, session)
            if self.full:
                raise QueueFull(f"{len(self._waiting)} requests are waiting; try again later")
            aside = None
            if session is not None and generation.search is not None:
                aside = self._registry.aside(session)
            elif name is not None:
                self._registry.busy.add(name)
            self._waiting.append(Waiting(generation, deliver, time.perf_counter(), aside))
            self._changed.notify_all()

    @property
    def full(self) -> bool:
        """Whether no more may wait beside those who can run at once; asked without the lock, so it may change."""
        free = max(0, self._config.max_running - self._choices())
        return len(self._waiting) >= self._config.max_waiting + free

    def cancel(self, generation_id: str, index: int | None = None) -> None:
        """End a generation, or one choice of it; one that has ended already is left alone."""
        with self._delivery, self._changed:
            for waiting in [w for w in self._waiting if w.generation.id == generation_id]:
                self._waiting.remove(waiting)
                self._end_waiting(waiting, None)
            mine = (s for s in self._running if s.generation.id == generation_id)
            self._cancelled.update(s for s in mine if index in (None, s.index))
            self._changed.notify_all()

    def stats(self) -> EngineStats:
        """The engine now."""
        with self._changed:
            return snapshot(self._registry, len({each.generation.id for each in self._running}), len(self._waiting))

    # -- the engine's thread ---------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the engine's thread is running."""
        return self._thread.is_alive()

    def _loop(self) -> None:
        try:
            while self._turn():
                pass
        except Exception:  # nobody who was accepted may wait for ever, whatever went wrong
            logger.exception("the engine has failed")
        self._apart.close()
        with self._delivery, self._changed:
            self._accepting = False
            self._take_woken()
            self._finish_all()

    def _turn(self) -> bool:
        """Wait for work and do one step of it; False when the engine is to stop."""
        self._take_what_came()
        with self._delivery, self._changed:
            self._changed.wait_for(lambda: self._stopping or self._running or self._waiting, timeout=IDLE_SECONDS)
            if self._stopping:
                return False
            self._take_woken()
            self._tidy()
            self._retire_cancelled()
            self._admit()
            self._take_woken()
            planned, known = self._plan(), self._known
        if self._apart.waker.alone and (self._apart.reading or self._apart.asleep):
            with self._changed:
                self._changed.wait_for(lambda: self._apart.ended or self._known != known, timeout=IDLE_SECONDS)
        if planned:
            begun = time.perf_counter()
            self._after_pass(Pass(planned).run(self._runner, self._apart.threads_left()))
            self._scheduler.took(time.perf_counter() - begun)
        return True

    @property
    def _known(self) -> tuple[int, int, bool]:
        """What others want: it changes when they want something else."""
        return len(self._waiting), len(self._cancelled), self._stopping

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _take_what_came(self) -> None:
        if (passed := self._apart.take()) is not None:
            self._scheduler.came(passed.tokens, passed.step.report.seconds)
            self._after_pass(passed)

    def _take_woken(self) -> None:
        for sequence, error in self._apart.waker.turn():
            if error is not None:
                logger.error("a session could not come back", exc_info=error)
                self._end(sequence, Failed(EngineError(f"the session could not come back from the disk: {error}")))
            else:
                sequence.cached = sequence.session.computed
                sequence.deliver(sequence.progress())

    def _tidy(self) -> None:
        """Let go of sessions whose time is over and of indexes that take too much memory; store what could not be."""
        self._registry.expire(time.time())
        self._registry.catch_up()
        while self._damaged:
            self._registry.mend(self._damaged.pop(), [sequence.session for sequence in self._running])
        while self._store.landmarks.bytes > self._store.most_landmarks and self._registry.spare():
            pass
        self._store.balance()

    def _admit(self) -> None:
        """Start waiting generations, first come first served, while they fit."""
        while self._waiting and self._choices() + self._waiting[0].generation.n <= self._config.max_running:
            generation = self._waiting[0].generation
            name, session = generation.session_id, self._waiting[0].aside
            if session is None and name is not None:
                session = self._session(name, generation.tenant)
            if not self._admission.fits(generation, session, list(self._running)):
                if self._running:
                    return  # what runs will give room back
                error = OutOfRoom("the cache is full of kept sessions; delete some or give it more memory")
                self._end_waiting(self._waiting.popleft(), error)
                continue
            self._begin_or_fail(self._waiting.popleft(), session)

    def _choices(self) -> int:
        """Sequences that run, or will as soon as their prompt is read."""
        return sum(sequence.choices for sequence in list(self._running))  # a copy: asked without the lock, too

    def _begin_or_fail(self, waiting: Waiting, session: Session | None) -> None:
        """`_begin`; what goes wrong for one generation is its own."""
        try:
            self._begin(waiting, session)
        except Exception as error:
            logger.exception("a generation could not begin")
            self._end_waiting(waiting, EngineError(f"the answer could not begin: {error}"))

    def _begin(self, waiting: Waiting, session: Session | None) -> None:
        generation, share = waiting.generation, self._config.prefix_cache
        reading = self._defaults.of(generation.retrieval, session.blocks_per_head if session else None)
        if session is None:
            share = share and generation.sampling.prompt_logprobs is None
            session = self._registry.start(generation.tokens, generation.tenant, reading, share=share)
        elif waiting.aside is not None:
            session.append(generation.tokens, reading)
        else:
            self._registry.go_on(session, generation.tokens, reading, share=share)
        sequence = Sequence(generation, 0, session, waiting.deliver, waiting.submitted, self._defaults)
        self._run(sequence)
        if session.parked:
            self._apart.waker.add(sequence)
        else:
            sequence.deliver(sequence.progress())

    def _run(self, sequence: Sequence) -> None:
        self._running[sequence] = Sampler(sequence.generation.sampling, sequence.index, self._hidden)

    def _plan(self) -> Planned:
        """The next step; what is to be read beside it begins."""
        asleep = self._apart.asleep  # and parked is who was given up, until he is retired
        here = [each for each in self._running if not (each in asleep or each.session.parked)]
        plan = self._scheduler.plan(here, self._apart.reading)
        self._apart.waker.alone = not plan.step
        step, beside = self._with_blocks(plan.step), self._with_blocks(plan.beside)
        if beside:
            self._apart.read(beside)
        return step

    def _with_blocks(self, planned: Planned) -> Planned:
        """What is planned, its blocks allocated; a sequence that gets none fails alone."""
        for sequence, end in {sequence: span.end for sequence, span in planned}.items():
            try:
                self._reserve(sequence.session, end)
            except OutOfBlocks:
                self._end(sequence, Failed(OutOfRoom(FULL)))
        return [(sequence, span) for sequence, span in planned if sequence in self._running]

    def _after_pass(self, passed: Pass) -> None:
        """What follows from a forward pass."""
        if passed.logits is None:
            with self._delivery, self._changed:
                self._after_failure(passed)
            return
        report = passed.step.report
        report.restores, self._registry.restores = self._registry.restores, []
        if self._observe:
            self._observe(report)
        with self._delivery, self._changed:
            for sequence, own in passed.last_rows().items():
                self._after_or_fail(sequence, own)

    def _after_failure(self, passed: Pass) -> None:
        """Whatever fails in a pass fails requests, not the server; nothing has advanced, so others run it again."""
        for sequence in passed.sequences:  # what it was to fill, another pass may not come to for long
            sequence.session.trim()
        if isinstance(passed.error, DamagedBlock):  # what is lost is computed again, then this
            self._registry.mend(passed.error, [sequence.session for sequence in self._running])
        elif isinstance(passed.error, OutOfBlocks):  # what came last gives its room to the others
            self._end(passed.sequences[-1], Failed(OutOfRoom(f"{passed.error}; give it more (--kv-bytes)")))
        else:
            logger.error("a step failed", exc_info=passed.error)
            for sequence in passed.sequences:
                self._end(sequence, Failed(EngineError(f"the step failed: {passed.error}")))

    def _after_or_fail(self, sequence: Sequence, logits: Tensor) -> None:
        """`_after`; what goes wrong for one sequence is its own."""
        try:
            self._after(sequence, logits)
        except ConstraintFailed as error:
            self._end(sequence, Failed(error))
        except Exception as error:
            logger.exception("a sequence failed")
            if sequence in self._running:
                self._end(sequence, Failed(EngineError(f"the answer failed: {error}")))

    def _after(self, sequence: Sequence, logits: Tensor) -> None:
        """Report progress, or draw a token once everything so far is computed; logits (rows, vocabulary)."""
        if sequence.scores:
            sequence.deliver(score(sequence, logits, self._hidden))
        if sequence.reading:
            sequence.deliver(sequence.progress())
        if sequence.remaining or sequence in self._cancelled:
            return
        if not sequence.samples:
            self._end(sequence, sequence.finished("length"))
            return
        for choice in (*self._branch(sequence), sequence):
            self._draw(choice, logits[-1])

    def _branch(self, sequence: Sequence) -> list[Sequence]:
        """The other choices that a sequence stands for: those of a generation whose prompt has just been read."""
        choices: list[Sequence] = []
        for index in range(1, sequence.choices):
            choices.append(sequence.branch(index, self._registry.branch(sequence.session)))
            self._run(choices[-1])
        return choices

    def _draw(self, sequence: Sequence, logits: Tensor) -> None:
        prompt = sequence.session.tokens[: sequence.prompt].tolist() if sequence.penalises_prompt else []
        token = self._running[sequence].sample(logits, prompt, sequence.generated, sequence.allowed())
        reason = sequence.take(token, self.description.eos_token_ids)
        self._registry.save(sequence.session)  # before anybody is told
        sequence.deliver(token)
        if reason:
            self._end(sequence, sequence.finished(reason))

    # -- ending, under the lock ------------------------------------------------------------------------------

    def _retire_cancelled(self) -> None:
        for sequence in self._apart.given_up(self._cancelled):
            self._end(sequence, sequence.finished("cancelled"))

    def _end(self, sequence: Sequence, event: Finished | Failed) -> None:
        """Give room and session back, and tell."""
        del self._running[sequence]
        self._cancelled.discard(sequence)
        session = sequence.session
        if sequence.generation.search is not None:
            session.close()
        elif sequence.generation.session_id is not None:
            self._registry.busy.discard(session.id)
            self._registry.rest(session)
        elif self._config.prefix_cache and sequence.index == 0:
            self._registry.keep(session)
        else:
            session.close()
        sequence.end(event)
        self._changed.notify_all()

    def _end_waiting(self, waiting: Waiting, error: EngineError | None) -> None:
        """Answer a generation that never started."""
        if waiting.aside is not None:
            waiting.aside.close()
        else:
            self._registry.busy.discard(waiting.generation.session_id or "")
        self._changed.notify_all()
        for event in waiting.ended(error):
            waiting.deliver(event)

    def _finish_all(self) -> None:
        for sequence in list(self._running):
            self._end(sequence, sequence.finished("cancelled"))
        while self._waiting:
            self._end_waiting(self._waiting.popleft(), EngineStopped("the engine was stopped"))
