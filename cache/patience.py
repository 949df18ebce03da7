"""How long it is waited for what comes by itself, as room does when the disk has written."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE, LOOK = 10.0, 0.005
"""Seconds in all, and between two looks."""


class Patience:
    """For one thing that is waited for. Who was stopped for a while did not look, and loses no more than a look."""

    def __init__(self) -> None:
        self._left = PATIENCE

    def look(self, wait: Callable[[float], object]) -> bool:
        """Wait for a moment, to look again then; False at once if it was waited long enough.

        Args:
            wait: for so many seconds, or less
        """
        if self._left <= 0:
            return False
        begun = time.monotonic()
        wait(LOOK)
        self._left -= min(2 * LOOK, time.monotonic() - begun)
        return True
