"""A `torch.cuda` that does everything at once and writes down what may be relied on to happen before what.

Each stream has a clock for itself and what it knows of the others' (vector clocks, Mattern 1989): by waiting for a
stream or an event it learns theirs, and the CPU's calls learn what the CPU has waited for. Two uses of a frame by two
streams of which one writes are a race if neither knows of the other.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tests.pretended import Card, Pretended, done

READS = {Tensor.index_select}
WRITES = {Tensor.index_copy_, Tensor.index_fill_, Tensor.__setitem__}
Clock = Counter[str]


class Race(AssertionError):
    """A frame is used by two streams in an order that nothing ensures."""


@dataclass
class Use:
    stream: str
    time: int
    writes: bool


class Streams:
    """What stands for `torch.cuda`, and the streams' clocks.

    Args:
        ended: whether an event that somebody asks has ended
    """

    def __init__(self, ended: Callable[[], bool] = lambda: False) -> None:
        self.ended = ended
        self.host: Clock = Counter()
        self.compute = Stream(self, "compute")
        self._current = self.compute
        self._count = 0

    def made(self, device: Any) -> Stream:
        self._count += 1
        return Stream(self, f"stream {self._count}")

    def current_stream(self, device: Any = None) -> Stream:
        return self._current

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self._current = self._current, stream
        yield
        self._current = before


class Stream:
    def __init__(self, streams: Streams, name: str) -> None:
        self._streams = streams
        self.name = name
        self.clock: Clock = Counter()

    def step(self) -> int:
        """Ask it for something: after what the CPU has waited for."""
        self.clock |= self._streams.host
        self.clock[self.name] += 1
        return self.clock[self.name]

    def wait_stream(self, other: Stream) -> None:
        self.clock |= other.clock

    def wait_event(self, event: Event) -> None:
        self.clock |= event.clock

    def record_event(self) -> Event:
        return Event(self._streams, self.clock.copy())


class Event:
    def __init__(self, streams: Streams, clock: Clock) -> None:
        self._streams = streams
        self.clock = clock

    def query(self) -> bool:
        if ended := self._streams.ended():
            self.synchronize()
        return ended

    def synchronize(self) -> None:
        self._streams.host |= self.clock


class Watched(Card):
    """A pretended card whose frames are watched.

    Attributes:
        frames: the tensors to watch (frames, …), set when they are made
        uses: how often frames were used
    """

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self._streams = streams
        self.frames: tuple[Tensor, ...] = ()
        self.uses = 0
        self._seen: defaultdict[tuple[int, int], list[Use]] = defaultdict(list)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READS | WRITES:
            for number, whole in enumerate(self.frames):
                if args[0] is whole:
                    self._use(number, rows(func, args), writes=func in WRITES)
        if func is Tensor.copy_ and isinstance(args[1], Pretended):
            current = self._streams.current_stream()
            if not self._streams.compute.clock <= current.clock:
                raise Race(f"{current.name} copies what it does not know to be computed")
        if func is Tensor.cpu and isinstance(args[0], Pretended):  # waits for all that was computed
            self._streams.host |= self._streams.current_stream().clock
        return done(func, args, kwargs)

    def _use(self, number: int, at: list[int], *, writes: bool) -> None:
        stream = self._streams.current_stream()
        time = stream.step()
        for frame in at:
            for other in self._seen[number, frame]:
                known = stream.clock[other.stream] >= other.time
                if (writes or other.writes) and not known:
                    raise Race(f"frame {frame}: {stream.name} does not know that {other.stream} used it")
            self._seen[number, frame].append(Use(stream.name, time, writes))
        self.uses += len(at)


def rows(func: Any, args: Any) -> list[int]:
    """Which rows of a tensor a function uses."""
    at = args[1][0] if func is Tensor.__setitem__ else args[2]
    held = at.held if isinstance(at, Pretended) else at
    found: list[int] = held.unique().tolist()
    return found
