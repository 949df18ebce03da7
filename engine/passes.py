"""A forward pass on its way, and a thread on which one runs beside others.

A step that decodes a few rows of a small model keeps one core busy and cannot use a second one; so where there are two,
a part of a prompt goes through the model on a thread of its own meanwhile. Owns that thread and which CPU threads each
side has. Knows no lock and no queue: who begins a pass asks for it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from engine.runner import ModelRunner
from engine.scheduler import Planned, step_of, tokens_of
from engine.sequence import Sequence


class Pass:
    """One forward pass of planned spans.

    Attributes:
        logits: (rows, vocabulary) once it has run
        error: what it failed by instead
    """

    def __init__(self, planned: Planned) -> None:
        self.planned = planned
        self.step, self._rows, self._counts = step_of(planned)
        self.logits: Tensor | None = None
        self.error: Exception | None = None

    def run(self, runner: ModelRunner, threads: int) -> Pass:
        """Compute it by so many CPU threads; raises nothing."""
        if torch.get_num_threads() != threads:  # each thread has a number of its own
            torch.set_num_threads(threads)
        begun = time.perf_counter()
        try:
            self.logits = runner.run(self.step, self._rows)
        except Exception as error:  # told by who reads the result
            self.error = error
        self.step.report.seconds = time.perf_counter() - begun
        return self

    @property
    def sequences(self) -> list[Sequence]:
        """Whose spans they are, in their order."""
        return list(dict.fromkeys(sequence for sequence, _ in self.planned))

    def last_rows(self) -> dict[Sequence, Tensor]:
        """Logits (rows, vocabulary) of each sequence's last span."""
        assert self.logits is not None, "it has not run"
        rows = self.logits.split(self._counts)
        return {sequence: own for (sequence, _), own in zip(self.planned, rows, strict=True)}

    @property
    def tokens(self) -> int:
        """Text tokens that it computes."""
        return tokens_of(self.planned)


class Beside:
    """Runs one pass at a time on a thread of its own.

    Args:
        runner: with an attention of its own, which keeps working memory from call to call
        threads: CPU threads that both sides have, two or more
        decode_share: what the other side has of them
        tell: called on that thread when a pass has ended
    """

    def __init__(self, runner: ModelRunner, threads: int, decode_share: float, tell: Callable[[], None]) -> None:
        self._runner, self._tell = runner, tell
        self._threads = min(threads - 1, max(1, round(threads * (1 - decode_share))))
        self.left = threads - self._threads
        """CPU threads of the other side while a pass runs here."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine-beside")
        self._running: Future[Pass] | None = None
        self.sequences: frozenset[Sequence] = frozenset()
        """What its pass computes; nobody else may touch them."""

    def begin(self, planned: Planned) -> None:
        """Begin a pass; the last one must have been taken."""
        assert self._running is None, "one pass at a time"
        begun = Pass(planned)
        self.sequences = frozenset(begun.sequences)
        self._running = self._executor.submit(begun.run, self._runner, self._threads)
        self._running.add_done_callback(lambda _: self._tell())

    @property
    def ended(self) -> bool:
        """Whether there is a pass to take."""
        return self._running is not None and self._running.done()

    def take(self) -> Pass:
        """The pass that was begun last, waiting for its end."""
        assert self._running is not None, "no pass was begun"
        passed, self._running, self.sequences = self._running.result(), None, frozenset()
        return passed

    def close(self) -> None:
        """End the thread, after what it computes."""
        self._executor.shutdown()
