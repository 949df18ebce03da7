"""`Waker`: brings sessions back from the disk on a thread of its own, while steps go on with what is here.

Owns that thread, who waits for it, and which CPU threads each side has. Knows no lock: one thread asks for all of it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch

from cache import SessionRegistry, Waking
from engine.sequence import Sequence


class Woken(NamedTuple):
    """A sequence whose session is here now, or has failed to come."""

    sequence: Sequence
    error: Exception | None = None


class Waker:
    """One session after the other.

    Args:
        registry: their sessions'
        threads: CPU threads that both sides have
        tell: called on its thread when there is something for `turn` to do
    """

    def __init__(self, registry: SessionRegistry, threads: int, tell: Callable[[], None]) -> None:
        self._registry, self._threads, self._tell = registry, threads, tell
        self.left = max(1, threads - 1)
        """CPU threads of a step that runs meanwhile."""
        self.alone = True
        """Whether no step runs, so that all threads can be had."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine-waker")
        self._waiting: deque[Sequence] = deque()
        self._begun: tuple[Sequence, Waking, Future[bool]] | None = None
        self._given_up = False

    @property
    def sequences(self) -> frozenset[Sequence]:
        """Whose sessions are not here yet; nobody else may touch them."""
        return frozenset(self._waiting if self._begun is None else (*self._waiting, self._begun[0]))

    def add(self, sequence: Sequence) -> None:
        """Have the session of a sequence brought back when it is its turn."""
        self._waiting.append(sequence)

    def give_up(self, sequence: Sequence) -> None:
        """Go no further with one; if it is on its way, it stays among the others until the next turn after its end."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        else:
            self._given_up = True

    @property
    def ended(self) -> bool:
        """Whether one has come to its end."""
        return self._begun is not None and self._begun[2].done()

    def turn(self) -> list[Woken]:
        """Take what has ended, and let the next one set out; under the registry's lock.

        Only now it is asked what others hold of it: the one before may have brought it back.
        """
        found: list[Woken] = []
        if self._begun is not None and self._begun[2].done():
            (sequence, waking, future), self._begun = self._begun, None
            found += self._attempt(sequence, partial(self._take, waking, future))
        while self._waiting and self._begun is None:
            sequence = self._waiting.popleft()
            found += self._attempt(sequence, partial(self._set_out, sequence))
        return found

    def close(self) -> None:
        """Give up all of them, and end the thread."""
        self._waiting.clear()
        self._given_up = True
        self._executor.shutdown()

    def _attempt(self, sequence: Sequence, action: Callable[[], bool]) -> list[Woken]:
        """What there is to tell of one, if its session is here now, as the action tells, or failed to come."""
        try:
            return [Woken(sequence)] if action() else []
        except Exception as error:  # its own, whatever it is
            return [Woken(sequence, error)]

    def _set_out(self, sequence: Sequence) -> bool:
        waking = self._registry.waking(sequence.session)
        try:
            if not waking.left:  # others have all of it
                self._registry.woken(waking)
                waking.close()
                return True
            self._given_up = False  # before it begins
            future = self._executor.submit(self._run, waking)
        except BaseException:
            waking.close()
            raise
        self._begun = sequence, waking, future
        future.add_done_callback(lambda _: self._tell())
        return False

    def _take(self, waking: Waking, future: Future[bool]) -> bool:
        with contextlib.closing(waking):
            if whole := future.result():
                self._registry.woken(waking)
        return whole

    def _run(self, waking: Waking) -> bool:
        """Whether it came to its end."""
        while not self._given_up:
            torch.set_num_threads(self._threads if self.alone else 1)  # each thread has a number of its own
            if not waking.step():
                return True
        return False
