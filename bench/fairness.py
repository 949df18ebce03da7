"""Streams that decode while a long prompt is read: what both keep of their speed.

Three things take turns until the prompt is read: the streams alone, the streams with the prompt, the prompt alone. So
all see the same machine, whatever else keeps it busy, and both ways of reading see texts of the same lengths.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from bench.served import Connection, ServerProcess, Stream, completion, quantile, text

WARM = 32
"""Events of a stream before measuring begins."""
LONGEST = 16_000
"""Tokens of an answer that is to last as long as the measurement."""


def fairness(options: argparse.Namespace) -> dict[str, Any]:
    """See the module."""
    settings = {"threads": options.threads, "prefix_cache": "no", "decode_share": options.decode_share}
    with ServerProcess(options.model, kv_bytes="4GiB", **settings) as server:  # for all that is promised
        session = server.client.post("/v1/sessions").json()["id"]
        return asyncio.run(_fairness(server, session, options))


async def _fairness(server: ServerProcess, session: str, options: argparse.Namespace) -> dict[str, Any]:
    prompt = Prompt(server, session, text(options.tokens, -1))
    idle, beside = list[float](), list[float]()
    while not prompt.done and sum(prompt.seconds.values()) < options.seconds:
        streams = [Stream() for _ in range(options.streams)]
        async with _decoding(server.port, streams, options.context):
            start = time.perf_counter()
            await asyncio.sleep(options.turn_seconds)
            middle = time.perf_counter()
            reading = await prompt.read("beside", options.turn_seconds)
        idle += _gaps(streams, start, middle)
        beside += _gaps(streams, *reading)
        if not prompt.done:
            await prompt.read("alone", options.turn_seconds)
    return {
        "decode_keeps": statistics.mean(idle) / statistics.mean(beside),
        "p99_ratio": quantile(beside, 0.99) / quantile(idle, 0.99),
        "prefill_keeps": prompt.rate("beside") / prompt.rate("alone"),
        "idle_tokens_per_second": options.streams / statistics.mean(idle),
        "beside_tokens_per_second": options.streams / statistics.mean(beside),
        "idle_ms": [round(1000 * quantile(idle, share), 1) for share in (0.5, 0.9, 0.99)],
        "beside_ms": [round(1000 * quantile(beside, share), 1) for share in (0.5, 0.9, 0.99)],
        "prefill_tokens_per_second": prompt.rate("alone"),
        "beside_prefill_per_second": prompt.rate("beside"),
        "read_tokens": prompt.tokens.total(),
    }


@asynccontextmanager
async def _decoding(port: int, streams: Sequence[Stream], context: int) -> AsyncIterator[None]:
    """So many answers that are being streamed, their prompts read and their first tokens told."""
    connections = [Connection(port) for _ in streams]
    bodies = [completion(text(context, seed), LONGEST) for seed in range(len(streams))]
    tasks = [
        asyncio.ensure_future(connection.stream("/v1/completions", body, into))
        for connection, body, into in zip(connections, bodies, streams, strict=True)
    ]
    while any(len(stream.came) < WARM for stream in streams):
        assert not any(task.done() for task in tasks), f"an answer ended at once, status {streams[0].status}"
        await asyncio.sleep(0.05)
    yield
    assert not any(task.done() for task in tasks), "an answer ended while it was measured"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for connection in connections:
        await connection.close()


class Prompt:
    """A long prompt, read into a session bit by bit; tokens and seconds by the way that they were read.

    The first request gives it whole; one that leaves keeps what it read, and the next one goes on.

    Attributes:
        done: it has been read to its end; what a request reads before it is told to have left is counted nowhere
    """

    def __init__(self, server: ServerProcess, session: str, tokens: list[int]) -> None:
        self._server, self._session, self._rest = server, session, tokens
        self.tokens: Counter[str] = Counter()
        self.seconds = {"beside": 0.0, "alone": 0.0}
        self.done = False

    def rate(self, way: str) -> float:
        """Tokens per second."""
        return self.tokens[way] / self.seconds[way]

    async def read(self, way: str, seconds: float) -> tuple[float, float]:
        """Go on for so long; when the reading itself began and ended, as time.perf_counter()."""
        told, connection = Stream(), Connection(self._server.port)
        body = completion(self._rest or [16], 1, session_id=self._session, return_progress=True)
        self._rest = []
        reading = asyncio.ensure_future(connection.stream("/v1/completions", body, told))
        ended, _ = await asyncio.wait({reading}, timeout=seconds)
        self.done = bool(ended)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await connection.close()
        self.tokens[way] += told.read[-1][1] - told.read[0][1]
        begun, until = told.read[0][0], told.read[-1][0]
        self.seconds[way] += until - begun
        while (await asyncio.to_thread(self._server.client.get, f"/v1/sessions/{self._session}")).json()["busy"]:
            await asyncio.sleep(0.05)
        return begun, until


def _gaps(streams: Sequence[Stream], start: float, end: float) -> list[float]:
    """Seconds between the events of each stream that came between `start` and `end`."""
    return [b - a for stream in streams for a, b in itertools.pairwise(stream.came) if start <= a and b <= end]
