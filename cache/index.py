"""The landmarks of one session in one layer: add summaries, score queries against all of them.

Grows in segments whose sizes double, so nothing is copied to append; a fork reads its parent's segments and
grows segments of its own. Knows neither rules nor positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_SEGMENT, LARGEST_SEGMENT = 64, 8192


@dataclass(frozen=True)
class Segment:
    """Storage (kv_heads, capacity, width) of which the first `count` summaries belong to this index."""

    storage: Tensor
    count: int

    @property
    def room(self) -> int:
        return self.storage.shape[1] - self.count


class LandmarkIndex:
    """Summaries of blocks 0, 1, 2, … of a session.

    Args:
        kv_heads: heads that choose separately
        width: channels of a summary
        dtype: of the stored summaries
    """

    def __init__(self, kv_heads: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        self._shape = (kv_heads, width, dtype)
        self._segments: list[Segment] = []
        self._owned = False
        self.count = 0

    def add(self, summaries: Tensor) -> None:
        """Append summaries (kv_heads, blocks, width)."""
        while summaries.shape[1]:
            last = self._open_segment(summaries.device)
            taken = min(last.room, summaries.shape[1])
            last.storage[:, last.count : last.count + taken] = summaries[:, :taken]
            self._segments[-1] = Segment(last.storage, last.count + taken)
            self.count += taken
            summaries = summaries[:, taken:]

    def _open_segment(self, device: torch.device) -> Segment:
        """A segment of our own with room: the last one, or a new one twice as large as it."""
        if not self._owned or not self._segments[-1].room:
            heads, width, dtype = self._shape
            largest = max((s.storage.shape[1] for s in self._segments), default=FIRST_SEGMENT // 2)
            capacity = min(2 * largest, LARGEST_SEGMENT)
            storage = torch.empty((heads, capacity, width), dtype=dtype, device=device)
            self._segments.append(Segment(storage, 0))
            self._owned = True
        return self._segments[-1]

    def scores(self, queries: Tensor, count: int) -> Tensor:
        """Dot products of queries (kv_heads, rows, width) with the first `count` summaries: (kv_heads, rows, count)."""
        scores = torch.empty((*queries.shape[:2], count), dtype=queries.dtype, device=queries.device)
        start = 0
        for segment in self._segments:
            taken = min(segment.count, count - start)
            if taken <= 0:
                break
            summaries = segment.storage[:, :taken].to(queries.dtype)  # (kv_heads, taken, width)
            torch.matmul(queries, summaries.mT, out=scores[:, :, start : start + taken])
            start += taken
        assert start == count, "more summaries were asked for than the index holds"
        return scores

    def fork(self, count: int) -> LandmarkIndex:
        """An index of the first `count` summaries that shares their storage."""
        fork = LandmarkIndex(*self._shape)
        for segment in self._segments:
            taken = min(segment.count, count - fork.count)
            if taken > 0:
                fork._segments.append(Segment(segment.storage, taken))
                fork.count += taken
        assert fork.count == count, "cannot fork beyond what the index holds"
        return fork
