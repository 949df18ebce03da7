"""Pages on their way between host memory and a device: the one place that knows of streams.

Each way a page is gathered first, so that one copy moves many: pages are small, and lie anywhere. What comes up is
gathered by the CPU before `up` returns, so nobody has to keep it still; what goes down is gathered by the device.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol

import torch
from torch import Tensor

from cache.tiers.base import Places


class Descent(Protocol):
    """Pages that are on their way down."""

    @property
    def done(self) -> bool:
        """Whether they are there."""
        ...

    def take(self) -> Tensor:
        """Keys and values (pages, 2, block_size, head_dim) in host memory, waiting for them; from any thread."""
        ...


class Copies(Protocol):
    """Copies between host memory and one device."""

    @property
    def device(self) -> torch.device: ...

    def up(self, pages: Places, frames: Tensor, keys: Tensor, values: Tensor) -> int:
        """Begin to copy pages of host memory to frames (pages,) of the device.

        It comes after everything that the device was asked before, so frames may be those that this still reads.

        Args:
            pages: may be overwritten as soon as this returns
            frames: each at most once, on the CPU
            keys, values: all frames (frames, block_size, head_dim)

        Returns:
            The number of this copy; later ones have higher ones.
        """
        ...

    def reach(self, copy: int) -> None:
        """What the device is asked from here on comes after this copy and all before it."""
        ...

    def down(self, pages: Tensor) -> Descent:
        """Begin to copy pages (pages, 2, block_size, head_dim) of the device, as it was asked to compute them."""
        ...


class DirectCopies:
    """Copies that are done when they are asked for: for a device that is the CPU itself."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._count = 0

    def up(self, pages: Places, frames: Tensor, keys: Tensor, values: Tensor) -> int:
        at = frames.to(self.device)
        for whole, came in zip((keys, values), pages.copied(), strict=True):
            whole.index_copy_(0, at, came.to(self.device))
        self._count += 1
        return self._count

    def reach(self, copy: int) -> None:
        """It is there already."""

    def down(self, pages: Tensor) -> Descent:
        return Arrived(pages.cpu())


class Arrived:
    """A descent that is over."""

    done = True

    def __init__(self, pages: Tensor) -> None:
        self._pages = pages

    def take(self) -> Tensor:
        return self._pages


class StreamCopies:
    """Copies of a CUDA device, each way on a stream of its own, from and to pinned memory.

    The order of things, which is all that keeps the device from reading what is not there yet:

    - up: its stream waits for what was computed so far, which may still read the frames; computing waits for a copy
      only when `reach` says so, so it goes on meanwhile
    - down: its stream waits for what was computed so far, which writes the pages; its end is an event, which any thread
      may wait for
    - what a copy reads and writes, in pinned memory and on the device, is kept until it has ended, so that nobody gets
      its memory before
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._flying: deque[tuple[int, torch.cuda.Event]] = deque()  # copies up, by number
        self._kept: deque[tuple[torch.cuda.Event, tuple[Tensor, ...]]] = deque()
        self._keeping = threading.Lock()  # blocks may go down on one thread while pages come up on another
        self._count = 0

    def up(self, pages: Places, frames: Tensor, keys: Tensor, values: Tensor) -> int:
        staged = tuple(locked(x).copy_(x) for x in (frames, *pages.copied()))
        self._up.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._up):  # what is allocated here belongs to this stream
            at, *came = (x.to(self.device, non_blocking=True) for x in staged)
            for whole, new in zip((keys, values), came, strict=True):
                whole.index_copy_(0, at, new)
            ended = self._up.record_event()
        self._keep(ended, staged)
        self._count += 1
        self._flying.append((self._count, ended))
        return self._count

    def _keep(self, ended: torch.cuda.Event, tensors: tuple[Tensor, ...]) -> None:
        """Keep tensors until a copy has ended, and let go of those of copies that have."""
        with self._keeping:
            while self._kept and self._kept[0][0].query():
                self._kept.popleft()
            self._kept.append((ended, tensors))

    def reach(self, copy: int) -> None:
        while self._flying and self._flying[0][0] <= copy:
            _, ended = self._flying.popleft()  # of one stream: the last one comes after the others
            if not self._flying or self._flying[0][0] > copy:
                torch.cuda.current_stream(self.device).wait_event(ended)

    def down(self, pages: Tensor) -> Descent:
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._down):
            below = locked(pages).copy_(pages, non_blocking=True)
            ended = self._down.record_event()
        self._keep(ended, (below, pages))
        return Falling(below, ended)


class Falling:
    """A descent on a stream."""

    def __init__(self, pages: Tensor, ended: torch.cuda.Event) -> None:
        self._pages, self._ended = pages, ended

    @property
    def done(self) -> bool:
        return bool(self._ended.query())

    def take(self) -> Tensor:
        self._ended.synchronize()
        return self._pages


def locked(like: Tensor) -> Tensor:
    """Host memory of this shape and type that a device can read and write by itself."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def copies_for(device: torch.device) -> Copies:
    """How a device is copied to."""
    return StreamCopies(device) if device.type == "cuda" else DirectCopies(device)
