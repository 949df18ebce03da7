"""The engine's thread and the event loop: requests go one way, events come back through one bounded queue each.

Owns that queue and its policy: a client that reads too slowly is cut off, the engine's thread never waits for it.
Knows no text and no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from types import TracebackType
from typing import TypeVar

from engine import Engine, Event, Failed, Finished, Generation, Progress
from server.errors import ApiError
from server.limits import Account, Accounts, Charge
from server.metrics import Metrics, RequestClock

Result = TypeVar("Result")
Guard = Callable[[Engine], AbstractContextManager[object]]
CALLERS = 4


class AsyncEngine:
    """An engine for one event loop."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        capacity: int,
        accounts: Accounts | None = None,
        request_seconds: float | None = None,
    ) -> None:
        self._engine, self._metrics, self._capacity = engine, metrics, capacity
        self._request_seconds = math.inf if request_seconds is None else request_seconds
        self._accounts = accounts or Accounts()
        self.description = engine.description
        # Its own threads: a call must not queue behind the tokenising of huge texts.
        self._threads = ThreadPoolExecutor(CALLERS, thread_name_prefix="cairn-call")

    @property
    def alive(self) -> bool:
        """Whether the engine still runs; it ends when it is stopped, or by a fault of its own."""
        return self._engine.alive

    @property
    def full(self) -> bool:
        """Whether no more requests may wait."""
        return self._engine.full

    @cached_property
    def _bell(self) -> Bell:
        return Bell(asyncio.get_running_loop())

    def open(self, generations: Sequence[Generation], guard: Guard = nullcontext) -> EventStream:
        """Submit `generations`; enter the stream to read their events, leave it to cancel what still runs.

        Args:
            guard: takes the engine and is entered while they are submitted; what it raises refuses them
        """
        account = self._accounts.of(generations[0].tenant)
        longest, capacity = self._request_seconds, self._capacity
        ways = self._engine, self._metrics, account, generations, capacity, longest, self._threads, guard, self._bell
        return EventStream(*ways)

    async def call(self, method: Callable[..., Result], *arguments: str) -> Result:
        """A method of the engine, off the event loop: it may wait for a step to end."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, method, self._engine, *arguments)

    async def work(self, method: Callable[[Engine], Result]) -> Result:
        """As `call`, for what takes long; it goes on if nobody waits for it any more."""
        return await asyncio.to_thread(method, self._engine)

    def stop(self) -> None:
        """Cancel what runs and end the engine's thread."""
        self._engine.stop()


class Bell:
    """Wakes an event loop once for all streams that a step had something for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._lock = loop, threading.Lock()
        self._waiting: list[asyncio.Event] = []

    def add(self, arrived: asyncio.Event) -> None:
        """Set this one, too, when it rings."""
        with self._lock:
            self._waiting.append(arrived)

    def ring(self) -> None:
        """On the engine's thread, when a step has told everything."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        if waiting:
            call(self._loop, partial(set_all, waiting))


def set_all(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        event.set()


def call(loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
    """Let the loop do something."""
    with contextlib.suppress(RuntimeError):  # it has closed: then nobody reads any more
        loop.call_soon_threadsafe(action)


class EventStream:
    """The events of one or more generations, as (place of the generation, event), in the order they came."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        account: Account,
        generations: Sequence[Generation],
        capacity: int,
        longest: float,
        threads: ThreadPoolExecutor,
        guard: Guard,
        bell: Bell,
    ) -> None:
        self._engine, self._generations, self._capacity, self._guard = engine, generations, capacity, guard
        self._bell = bell
        self._loop, self._threads = asyncio.get_running_loop(), threads
        self._longest, self._deadline = longest, self._loop.time() + longest
        self._lock = threading.Lock()
        self._queue: deque[tuple[int, Event]] = deque()
        self._arrived = asyncio.Event()
        self._overflowed = False
        self._clocks = [RequestClock(metrics) for _ in generations]
        self._account = account
        self._charges: Sequence[Charge] = ()
        self._open = {(place, index) for place, each in enumerate(generations) for index in range(each.n)}

    async def __aenter__(self) -> EventStream:
        """Submit all; if one is refused, none runs."""
        self._charges = self._account.reserve(self._generations)
        submitting = self._loop.run_in_executor(self._threads, self._submit)
        try:
            await asyncio.shield(submitting)
        except asyncio.CancelledError:
            await asyncio.wait({submitting})
            submitting.exception()
            self._cancel_all()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._cancel_all()

    @property
    def ended(self) -> bool:
        """Whether every choice has ended and nothing is left to read."""
        return not self._open

    async def next(self, timeout: float | None = None) -> tuple[int, Event] | None:
        """The next event; None after `timeout` seconds without one. Raises what made a generation fail."""
        while not self._queue and not self._overflowed:
            left = self._deadline - self._loop.time()
            if left <= 0:
                raise ApiError(504, f"the request took longer than {self._longest:g} s", code="request_timeout")
            if not await self._wait(min(left, math.inf if timeout is None else timeout)) and timeout is not None:
                return None
        place, event = self._take()
        self._charges[place].see(event)
        if isinstance(event, Failed):
            self._open = {choice for choice in self._open if choice[0] != place}
            raise event.error
        if isinstance(event, Finished):
            self._open.discard((place, event.index))
        return place, event

    async def _wait(self, timeout: float) -> bool:
        self._arrived.clear()
        if self._queue or self._overflowed:  # came between the look and the clearing
            return True
        try:
            await asyncio.wait_for(self._arrived.wait(), None if math.isinf(timeout) else timeout)
        except TimeoutError:
            return False
        return True

    def cut(self, place: int, index: int) -> None:
        """End one choice at a stop string; its Finished still comes."""
        self._clocks[place].stopped.add(index)
        self._charges[place].cut(index)
        self._engine.cancel(self._generations[place].id, index)

    def _submit(self) -> None:
        begun = 0
        try:
            with self._guard(self._engine):
                for place, generation in enumerate(self._generations):
                    self._engine.submit(generation, partial(self._deliver, place), self._bell.ring)
                    begun += 1
        except Exception:
            for never_begun in self._charges[begun:]:
                never_begun.release()
            self._cancel_all()
            raise

    def _deliver(self, place: int, event: Event) -> None:
        """On the engine's thread: never wait."""
        self._clocks[place].observe(event)
        self._charges[place].observe(event)
        with self._lock:
            first = not self._queue
            fits = self._put(place, event)
        if not fits:
            call(self._loop, self._cancel_all)
        if first or not fits:
            self._bell.add(self._arrived)

    def _put(self, place: int, event: Event) -> bool:
        newest = self._queue[-1] if self._queue else None
        if isinstance(event, Progress) and newest and newest[0] == place and isinstance(newest[1], Progress):
            self._queue[-1] = (place, event)  # only the latest progress tells anything
        elif len(self._queue) < self._capacity:
            self._queue.append((place, event))
        else:
            self._overflowed = True
        return not self._overflowed

    def _take(self) -> tuple[int, Event]:
        with self._lock:
            if self._overflowed:
                raise ApiError(429, "the client reads the stream too slowly", code="slow_reader")
            return self._queue.popleft()

    def _cancel_all(self) -> None:
        for place in {place for place, _ in self._open}:
            self._engine.cancel(self._generations[place].id)
