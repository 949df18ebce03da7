"""`Apart`: what goes on beside steps, each on a thread of its own: part of a prompt, and sessions on their way back.

Owns how many CPU threads are left for steps meanwhile, and whose sequences no step may touch.
"""

from __future__ import annotations

from collections.abc import Set

from engine.passes import Beside, Pass
from engine.scheduler import Planned
from engine.sequence import Sequence
from engine.waker import Waker

NOBODY: frozenset[Sequence] = frozenset()


class Apart:
    """See the module.

    Args:
        threads: CPU threads of a step when nothing else goes on
        beside: reads prompts; None where two passes cannot run at once
        waker: brings sessions back
    """

    def __init__(self, threads: int, beside: Beside | None, waker: Waker) -> None:
        self._threads, self._beside, self.waker = threads, beside, waker

    @property
    def reads(self) -> bool:
        """Whether prompts can be read here."""
        return self._beside is not None

    @property
    def reading(self) -> frozenset[Sequence]:
        """Sequences that are being read: left alone until their part has come."""
        return NOBODY if self._beside is None else self._beside.sequences

    @property
    def asleep(self) -> frozenset[Sequence]:
        """Sequences whose sessions are still to come back: left alone until they have."""
        return self.waker.sequences

    @property
    def ended(self) -> bool:
        """Whether there is something to take."""
        return self.waker.ended or (self._beside is not None and self._beside.ended)

    def threads_left(self) -> int:
        """CPU threads of a step that begins now, which has them to itself."""
        if self._beside is not None and self.reading:
            return self._beside.left
        return self.waker.left if self.asleep else self._threads

    def read(self, planned: Planned) -> None:
        """Begin to read; what was read last must have been taken."""
        assert self._beside is not None, "nothing was to be read apart"
        self._beside.begin(planned)

    def take(self) -> Pass | None:
        """What has been read since."""
        return self._beside.take() if self._beside is not None and self._beside.ended else None

    def given_up(self, sequences: Set[Sequence]) -> Set[Sequence]:
        """Those that nothing here works for; of the others no more is begun, and they are to be asked for again."""
        for sequence in sequences & self.asleep:
            self.waker.give_up(sequence)
        return sequences - self.reading - self.asleep

    def close(self) -> None:
        """End the threads, after what they compute."""
        if self._beside is not None:
            self._beside.close()
        self.waker.close()
