"""`Waker`: brings sessions back from the disk on a thread of its own, while steps go on with what is here.

Owns that thread and which CPU threads each side has. Knows no lock and no queue: who begins a waking asks for it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from cache import Waking
from engine.sequence import Sequence


class Woken(NamedTuple):
    """A waking that has ended.

    Attributes:
        whole: whether it came to its end; if not, it was given up
        error: what it failed by instead
    """

    sequence: Sequence
    waking: Waking
    whole: bool
    error: BaseException | None


class Waker:
    """One session after the other.

    Args:
        threads: CPU threads that both sides have
        tell: called on its thread when a waking has ended
    """

    def __init__(self, threads: int, tell: Callable[[], None]) -> None:
        self._threads, self._tell = threads, tell
        self.left = max(1, threads - 1)
        """CPU threads of a step that runs meanwhile."""
        self.alone = True
        """Whether no step runs, so that all threads can be had."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine-waker")
        self._begun: dict[Sequence, tuple[Waking, Future[bool]]] = {}
        self._given_up: set[Sequence] = set()

    @property
    def sequences(self) -> frozenset[Sequence]:
        """Whose sessions are not here yet; nobody else may touch them."""
        return frozenset(self._begun)

    def begin(self, sequence: Sequence, waking: Waking) -> None:
        """Bring the session of a sequence back, after all that were begun before."""
        future = self._executor.submit(self._run, sequence, waking)
        self._begun[sequence] = waking, future
        future.add_done_callback(lambda _: self._tell())

    def give_up(self, sequence: Sequence) -> None:
        """Go no further with one; it is still to be taken."""
        self._given_up.add(sequence)

    @property
    def ended(self) -> bool:
        """Whether there is something to take."""
        return any(future.done() for _, future in list(self._begun.values()))

    def take(self) -> Iterator[Woken]:
        """Those that have ended since."""
        for sequence, (waking, future) in list(self._begun.items()):
            if future.done():
                del self._begun[sequence]
                self._given_up.discard(sequence)
                error = future.exception()
                yield Woken(sequence, waking, error is None and future.result(), error)

    def close(self) -> None:
        """Give up all of them, and end the thread; they are still to be taken."""
        self._given_up.update(self._begun)
        self._executor.shutdown()

    def _run(self, sequence: Sequence, waking: Waking) -> bool:
        """Whether it came to its end."""
        while sequence not in self._given_up:
            torch.set_num_threads(self._threads if self.alone else 1)  # each thread has a number of its own
            if not waking.step():
                return True
        return False
