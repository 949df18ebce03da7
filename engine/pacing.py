"""How much of a prompt a step reads while others decode: learned from how long steps take. Plain Python.

A step computes the decoding sequences and a part of a prompt on the same cores, so what the part costs comes on top
of the time between two tokens. Two things bound it: decoding sequences keep a share of their speed in the long run,
and no single gap grows beyond a few steps. For the first, the seconds that parts cost are a debt, which is paid off
by the steps that follow, and nothing is read while there is any. For the second, the size of a part follows what
the last one cost. Large parts now and then take less time for a token than a small one in each step.
"""

from __future__ import annotations

import statistics
from collections import deque

STRETCH = 2.5
"""A step that reads takes so many times as long as one that only decodes: some way below three, for they vary."""
LEAST = 16
"""Tokens of the smallest part, and of the first: fewer cost as much."""
REMEMBERED = 9
"""Steps whose mean tells how long decoding takes: enough to outlast a hiccup, few enough to follow a change."""
PART_SECONDS = 0.5
"""What a part may take that is read beside steps; a smaller one would not take much less than in proportion. After so
long a step decodes alone, for what that takes changes."""
FIRST = 64
"""Tokens of the first such part."""


class Pace:
    """Sets the size of the parts, and when one is read.

    Args:
        decode_share: what decoding sequences keep of their tokens per second, between 0 and 1
        most: tokens of the largest part
    """

    def __init__(self, decode_share: float, most: int) -> None:
        self._share, self._most = decode_share, most
        self._alone: deque[float] = deque(maxlen=REMEMBERED)
        self._tokens = float(min(LEAST, most))
        self._part = float(min(FIRST, most))  # of those that are read beside steps
        self._debt = 0.0
        self._just_read = False
        self._beside_seconds = 0.0  # of parts that were read beside steps since one decoded alone
        self.share_out(1, 0)

    def share_out(self, decoding: int, reading: int) -> None:
        """So many sequences decode and so many read: together, no prompt gets less time than a decoding sequence."""
        share = min(self._share, decoding / (decoding + reading))
        self._earned = 1 / share - 1  # for each second that decoding takes, so many go to prompts

    def tokens(self) -> int:
        """Prompt tokens that the next step may read beside decoding sequences; 0 while they are owed time."""
        return int(self._tokens) if self._free else 0

    def apart(self) -> int:
        """Prompt tokens that may be read beside the steps that follow; 0 while decoding sequences are owed time."""
        return int(self._part) if self._free else 0

    @property
    def _free(self) -> bool:
        """Now and then a step decodes alone, or nothing would tell how long that takes."""
        return bool(self._alone) and not self._just_read and self._debt <= 0

    @property
    def _mean_alone(self) -> float:
        """Seconds of a step that decodes alone. Now and then one takes longer by itself, as others do that read."""
        return statistics.mean(self._alone)

    def decoded(self, seconds: float) -> None:
        """A step of decoding sequences alone took so long."""
        self._alone.append(seconds)
        self._just_read, self._beside_seconds = False, 0.0
        self._pay(seconds)

    def read(self, tokens: int, seconds: float) -> None:
        """A step of decoding sequences that also read so many tokens took so long."""
        decoding = self._mean_alone
        cost = seconds - decoding
        self._just_read = True
        self._debt += cost
        self._pay(decoding)
        # At least every second step decodes alone, or nothing would tell how long that takes; what is read in the
        # others has to be enough for the prompts' share.
        wanted = max(STRETCH - 1, 2 * self._earned) * decoding
        if cost > wanted or tokens >= int(self._tokens):  # a smaller part tells nothing about a larger one
            factor = wanted / cost if cost > 0 else 2.0
            self._tokens = min(self._most, max(LEAST, self._tokens * min(2.0, max(0.5, factor))))

    def decoded_beside(self, seconds: float) -> None:
        """A step of decoding sequences took so long while a part was read beside it."""
        if self._alone:
            self._debt += seconds - self._mean_alone  # some take less: as nothing, others would count twice
            self._pay(self._mean_alone, REMEMBERED)

    def read_beside(self, tokens: int, seconds: float) -> None:
        """A part of so many tokens that was read beside steps took so long."""
        self._beside_seconds += seconds
        self._just_read = self._beside_seconds >= PART_SECONDS
        if seconds > PART_SECONDS or tokens >= int(self._part):
            factor = PART_SECONDS / seconds if seconds else 2.0
            self._part = min(self._most, max(LEAST, self._part * min(2.0, max(0.5, factor))))

    def _pay(self, seconds: float, saved: int = 1) -> None:
        """Decoding sequences had so many seconds for themselves; beyond what is owed so many times that is saved up.

        Of what no prompt wants it is one step's. While one is read, what is saved pays for the next step that takes
        long.
        """
        paid = seconds * self._earned
        self._debt = max(-saved * paid, self._debt - paid)
