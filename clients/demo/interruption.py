"""Being told to end, by Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType


class Interruption:
    """Ends what must not outlive the demo, and raises KeyboardInterrupt.

    Python drops an exception that is raised while a finaliser or the callback of a weak reference runs, and a signal
    may come just then. So what was told is ended first, which fails whatever is asked of it next, and `came` says why.

    Attributes:
        came: whether a signal came
    """

    def __init__(self) -> None:
        self.came = False
        self._end: Callable[[], None] | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background jobs do not hear Ctrl-C
                signal.signal(number, self._interrupt)

    def ends(self, end: Callable[[], None]) -> None:
        """Call this when a signal comes."""
        self._end = end

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.came = True
        if self._end:
            self._end()
        raise KeyboardInterrupt
