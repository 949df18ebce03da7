"""A started engine for tests: requests with their events, and a gate that holds it between two steps."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engine import (
    Engine,
    EngineConfig,
    Event,
    Failed,
    Finished,
    Generation,
    RetrievalParams,
    SamplingParams,
    StepReport,
    Token,
    load_engine,
)

SECONDS = 20.0
"""Longer than anything here takes; a test that waits so long has failed."""
LOOKS = 100
"""In so many seconds."""


class Gate:
    """Observes an engine's steps; while closed, the engine waits after each one."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []
        self._closed = False
        self._arrived, self._go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, report: StepReport) -> None:
        self.reports.append(report)
        if self._closed:
            self._arrived.release()
            assert self._go.acquire(timeout=SECONDS)

    def close(self) -> None:
        self._closed = True

    def wait(self) -> None:
        """Until the engine stands at the gate, its step computed and not yet accounted for."""
        assert self._arrived.acquire(timeout=SECONDS), "the engine did not come to its next step"

    def step(self) -> None:
        """Let it on to the next step's end."""
        self._go.release()
        self.wait()

    def open(self) -> None:
        self._closed = False
        self._go.release()


class Request:
    """A submitted generation and its events."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.events: list[Event] = []
        self._queue: queue.Queue[Event] = queue.Queue()
        self.deliver = self._queue.put

    def drain(self) -> list[Event]:
        """The events so far."""
        while not self._queue.empty():
            self.events.append(self._queue.get())
        return self.events

    def result(self) -> Request:
        """Wait for the end of every choice; raises what made it fail."""
        while len(self.ends()) < self.generation.n:
            event = self._next()
            assert not (isinstance(event, Token | Finished) and event.index in self.ends()), "it had ended"
            self.events.append(event)
            if isinstance(event, Failed):
                raise event.error
        return self

    def _next(self) -> Event:
        """Waits in looks: one who is stopped himself, as a whole machine may be, does not look."""
        for _ in range(LOOKS):
            with suppress(queue.Empty):
                return self._queue.get(timeout=SECONDS / LOOKS)
        raise AssertionError("no event comes")

    def ends(self) -> dict[int, Finished]:
        return {event.index: event for event in self.events if isinstance(event, Finished)}

    @property
    def end(self) -> Finished:
        (end,) = self.ends().values()
        return end

    def end_of(self, index: int) -> Finished:
        return self.ends()[index]

    def drawn(self, index: int = 0) -> list[Token]:
        return [event for event in self.events if isinstance(event, Token) and event.index == index]

    def tokens(self, index: int = 0) -> list[int]:
        return [token.token for token in self.drawn(index)]


class Running:
    """An engine that runs, with short ways to ask it."""

    def __init__(self, engine: Engine, gate: Gate) -> None:
        self.engine, self.gate = engine, gate
        self._ids = itertools.count()

    def submit(
        self,
        tokens: list[int],
        *,
        session: str | None = None,
        tenant: str = "",
        n: int = 1,
        retrieval: RetrievalParams | None = None,
        **sampling: Any,
    ) -> Request:
        """Greedy for 8 tokens, past any end token, if nothing else is said."""
        params = SamplingParams(**{"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, **sampling})
        name, retrieval = str(next(self._ids)), retrieval or RetrievalParams()
        request = Request(Generation(name, tuple(tokens), params, retrieval, session, tenant, n))
        self.engine.submit(request.generation, request.deliver)
        return request

    def ask(self, tokens: list[int], **options: Any) -> Request:
        return self.submit(tokens, **options).result()

    def cancel(self, request: Request, index: int | None = None) -> None:
        self.engine.cancel(request.generation.id, index)

    def settle(self) -> None:
        """Wait until nothing runs or waits."""
        with self.engine._changed:
            idle = self.engine._changed.wait_for(lambda: not (self.engine._running or self.engine._waiting), SECONDS)
        assert idle, "requests are left over"

    def check(self) -> None:
        """No block is lost and no session is left busy."""
        self.settle()
        stats = self.engine.stats()
        assert (stats.running, stats.waiting, stats.sessions["active"]) == (0, 0, 0)
        self.engine._registry.check()


@contextmanager
def running(folder: Path, **config: Any) -> Iterator[Running]:
    """A started engine, checked and stopped in the end."""
    gate = Gate()
    settings = EngineConfig(**{"kv_bytes": 8 << 20, "dtype": "float32", **config})
    engine = load_engine(str(folder), settings, observe=gate)
    engine.start()
    run = Running(engine, gate)
    try:
        yield run
        gate.open()
        if engine._thread.is_alive():
            run.check()
    finally:
        gate.open()
        engine.stop()
        engine._registry.check()
