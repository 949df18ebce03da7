"""`Delivery`: events go to their takers one by one, and when a step has delivered all, takers learn that it was all.

A taker on another thread is woken once for a step with many answers then, instead of once for each token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from engine.requests import Event

Deliver = Callable[[Event], None]


class Delivery:
    """Enter it before something is delivered, and before any lock that is held meanwhile; on leaving, takers are told.

    Any thread may: each tells at least those to whom it delivered itself.
    """

    def __init__(self) -> None:
        self._to_tell: deque[Callable[[], None]] = deque()

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        while self._to_tell:
            try:
                told = self._to_tell.popleft()
            except IndexError:  # another thread was quicker
                return
            told()

    def to(self, deliver: Deliver, told: Callable[[], None]) -> Deliver:
        """`deliver`, after which `told` is called once no more follows at once."""

        def delivered(event: Event) -> None:
            deliver(event)
            self._to_tell.append(told)

        return delivered
