"""What a tenant may use, and what it uses: requests and tokens per minute, requests at once.

Owns the counting. A request's tokens are reserved when it is submitted (what it gives, and the most it may generate)
and settled when it ends, so that what was charged is what was read and generated. Knows no HTTP and no keys.
Thread-safe: requests are counted on the event loop, tokens are settled on the engine's thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine import Event, Failed, Finished, Generation, Progress, Token
from server.errors import ApiError
from server.keys import Limits

Clock = Callable[[], float]
LEAST_WAIT = 1.0


class Bucket:
    """Holds what `limit` allows in a minute and refills as steadily as the minute passes."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self.limit, self._clock = limit, clock
        self._level, self._filled = float(limit), clock()

    @property
    def remaining(self) -> float:
        return max(0.0, self._fill())

    @property
    def seconds_to_full(self) -> float:
        return (self.limit - self._fill()) * 60 / self.limit

    def change(self, limit: int) -> None:
        """Another limit from now on; what has been used stays used."""
        self._level = self._fill() - self.limit + limit
        self.limit = limit

    def take(self, amount: int) -> float:
        """Take it and return 0, or leave it and return the seconds until it is there."""
        missing = amount - self._fill()
        if missing > 0:
            return missing * 60 / self.limit
        self._level -= amount
        return 0.0

    def give_back(self, amount: int) -> None:
        self._level = min(self._fill() + amount, float(self.limit))

    def _fill(self) -> float:
        now = self._clock()
        self._level = min(float(self.limit), self._level + (now - self._filled) * self.limit / 60)
        self._filled = now
        return self._level


@dataclass(frozen=True)
class Standing:
    """A bucket as clients are told of it."""

    limit: int
    remaining: int
    seconds_to_full: float


@dataclass(frozen=True)
class Totals:
    """What a tenant has used since the start; `running` is now."""

    requests: int
    refused: int
    prompt_tokens: int
    completion_tokens: int
    running: int


class Account:
    """What one tenant uses."""

    def __init__(self, limits: Callable[[], Limits], clock: Clock = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._lock = threading.Lock()
        self._buckets: dict[str, Bucket] = {}
        self._requests = self._refused = self._prompt = self._completion = self._running = 0

    def enter(self) -> None:
        """A request begins; ApiError if it may not. Whoever enters must leave."""
        limits = self._limits()
        with self._lock:
            if limits.concurrent_requests and self._running >= limits.concurrent_requests:
                raise self._refusal("concurrent_requests", limits.concurrent_requests, LEAST_WAIT)
            self._take("requests_per_minute", limits.requests_per_minute, 1)
            self._requests += 1
            self._running += 1

    def leave(self) -> None:
        """A request has ended."""
        with self._lock:
            self._running -= 1

    def reserve(self, generations: Sequence[Generation]) -> list[Charge]:
        """Take the most that they may use; ApiError if that is more than there is."""
        limits = self._limits()
        charges = [Charge(self, generation) for generation in generations]
        with self._lock:
            self._take("tokens_per_minute", limits.tokens_per_minute, sum(charge.reserved for charge in charges))
        return charges

    def settle(self, reserved: int, prompt: int, completion: int) -> None:
        """Give back what was not used."""
        with self._lock:
            self._prompt += prompt
            self._completion += completion
            bucket = self._buckets.get("tokens_per_minute")
            if bucket is not None:
                bucket.give_back(reserved - prompt - completion)

    def standing(self, name: str) -> Standing | None:
        """Where the tenant stands with a limit per minute; None if it has none."""
        limit = getattr(self._limits(), name)
        with self._lock:
            bucket = self._bucket(name, limit)
            if bucket is None:
                return None
            return Standing(bucket.limit, int(bucket.remaining), bucket.seconds_to_full)

    def totals(self) -> Totals:
        with self._lock:
            return Totals(self._requests, self._refused, self._prompt, self._completion, self._running)

    def _take(self, name: str, limit: int | None, amount: int) -> None:
        bucket = self._bucket(name, limit)
        if bucket is None:
            return
        if amount > bucket.limit:
            raise ApiError(
                413,
                f"the request may use {amount} tokens, and you have {bucket.limit} per minute: "
                "send less, or make max_tokens smaller",
                code="request_too_large",
                extra={"limit": bucket.limit, "wanted": amount},
            )
        wait = bucket.take(amount)
        if wait:
            raise self._refusal(name, bucket.limit, wait)

    def _bucket(self, name: str, limit: int | None) -> Bucket | None:
        if not limit:
            self._buckets.pop(name, None)
            return None
        bucket = self._buckets.setdefault(name, Bucket(limit, self._clock))
        if bucket.limit != limit:
            bucket.change(limit)
        return bucket

    def _refusal(self, name: str, limit: int, wait: float) -> ApiError:
        self._refused += 1
        told = f"your limit is {limit} {name.replace('_', ' ')}; try again in {max(wait, LEAST_WAIT):.0f} s"
        extra = {"limited": name, "limit": limit}
        return ApiError(429, told, code="rate_limit_exceeded", extra=extra, retry_after=wait)


class Charge:
    """The tokens of one generation: what it gives and generates; what a session already holds is free."""

    def __init__(self, account: Account, generation: Generation) -> None:
        self._account, self._given = account, len(generation.tokens)
        self._unread = self._given
        self._generated = dict.fromkeys(range(generation.n), 0)
        self._seen = dict(self._generated)
        self._cut: dict[int, int] = {}
        self._open = set(self._generated)
        self.reserved = self._given + generation.sampling.max_tokens * generation.n

    def observe(self, event: Event) -> None:
        """Follow the generation to its end; called on the engine's thread."""
        if isinstance(event, Progress):
            self._unread = min(self._given, event.total - event.processed)
        elif isinstance(event, Token):
            self._generated[event.index] += 1
        elif isinstance(event, Finished):
            self._finished(event)
        elif isinstance(event, Failed):
            self.release()

    def see(self, event: Event) -> None:
        """The same events when they are read, some time later."""
        if isinstance(event, Token):
            self._seen[event.index] += 1

    def cut(self, index: int) -> None:
        """A stop string has ended a choice: what the engine computes before it learns of it is free."""
        self._cut.setdefault(index, self._seen[index])

    def release(self) -> None:
        """Nothing more comes."""
        if self._open:
            self._open.clear()
            completion = sum(min(count, self._cut.get(index, count)) for index, count in self._generated.items())
            self._account.settle(self.reserved, self._given - self._unread, completion)

    def _finished(self, event: Finished) -> None:
        if event.reason != "cancelled":
            self._unread = 0
            self._cut.pop(event.index, None)  # it was complete before it was cut
        if self._open == {event.index}:
            self.release()
        self._open.discard(event.index)


class Accounts:
    """The accounts of all tenants, each made when it is first used: as many as there are tenants."""

    def __init__(self, limits_of: Callable[[str], Limits] | None = None, clock: Clock = time.monotonic) -> None:
        self._limits_of = limits_of or (lambda tenant: Limits())
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def of(self, tenant: str) -> Account:
        """A tenant's account."""
        if tenant not in self._accounts:
            self._accounts[tenant] = Account(lambda: self._limits_of(tenant), self._clock)
        return self._accounts[tenant]
