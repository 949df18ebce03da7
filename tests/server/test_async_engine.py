"""The queue between the engine's thread and the event loop, with a real engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import Engine, EngineConfig, Finished, Generation, InvalidParameter, SamplingParams, Token, load_engine
from server.async_engine import AsyncEngine, EventStream
from server.errors import ApiError
from server.metrics import Metrics


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Iterator[Engine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model gains nothing from more, and loses much where the machine is shared
    made = load_engine(str(tiny_folder), EngineConfig(kv_bytes=8 << 20))
    made.start()
    yield made
    made.stop()
    torch.set_num_threads(threads)


def generation(name: str, tokens: int, n: int = 1) -> Generation:
    return Generation(name, (10, 11, 12), SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True), n=n)


def run(engine: Engine, work: Callable[[AsyncEngine], Awaitable[None]], capacity: int = 8192) -> None:
    async def main() -> None:
        await work(AsyncEngine(engine, Metrics(), capacity))

    asyncio.run(main())


def idle(engine: Engine) -> bool:
    deadline = time.monotonic() + 5
    while engine.stats().running and time.monotonic() < deadline:
        time.sleep(0.01)
    return not engine.stats().running


def test_events_come_in_order_and_end(engine: Engine) -> None:
    async def work(wrapped: AsyncEngine) -> None:
        async with wrapped.open([generation("a", 5), generation("b", 3, n=2)]) as stream:
            seen = []
            while not stream.ended:
                item = await stream.next(10)
                assert item is not None
                seen.append(item)
        tokens = [(place, event.index) for place, event in seen if isinstance(event, Token)]
        assert sorted(tokens) == [(0, 0)] * 5 + [(1, 0)] * 3 + [(1, 1)] * 3
        assert sum(isinstance(event, Finished) for _, event in seen) == 3

    run(engine, work)


def test_streams_that_decode_together_wake_the_loop_together(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(wrapped: AsyncEngine) -> None:
        loop, woken = asyncio.get_running_loop(), 0
        wake = loop.call_soon_threadsafe

        def counted(*given: Any, **more: Any) -> asyncio.Handle:
            nonlocal woken
            woken += 1
            return wake(*given, **more)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        groups = [[generation(f"{name}-{i}", 50) for i in range(4)] for name in ("one", "two")]
        async with wrapped.open(groups[0]) as first, wrapped.open(groups[1]) as second:
            told = await asyncio.gather(*(read(stream) for stream in (first, second)))
        assert told == [200, 200]
        assert woken < 100, "two streams that take 50 steps together, and what begins and ends them"

    async def read(stream: EventStream) -> int:
        tokens = 0
        while not stream.ended:
            item = await stream.next(10)
            assert item is not None
            tokens += isinstance(item[1], Token)
        return tokens

    run(engine, work)


def test_a_slow_reader_is_cut_off(engine: Engine) -> None:
    async def work(wrapped: AsyncEngine) -> None:
        async with wrapped.open([generation("slow", 4000)]) as stream:
            for _ in range(100):
                await asyncio.sleep(0.02)  # reads nothing
            with pytest.raises(ApiError, match="too slowly"):
                await stream.next()
            assert idle(engine)

    run(engine, work, capacity=16)


def test_leaving_cancels(engine: Engine) -> None:
    async def work(wrapped: AsyncEngine) -> None:
        async with wrapped.open([generation("left", 4000, n=2)]) as stream:
            await stream.next()
        assert await asyncio.to_thread(idle, engine)

    run(engine, work)


def test_silence_is_told(engine: Engine) -> None:
    async def work(wrapped: AsyncEngine) -> None:
        async with wrapped.open([generation("silent", 1)]) as stream:
            while not stream.ended:
                await stream.next(10)
            begin = time.monotonic()
            assert await stream.next(0.05) is None
            assert 0.04 < time.monotonic() - begin < 2

    run(engine, work)


def test_one_refusal_stops_all(engine: Engine) -> None:
    async def work(wrapped: AsyncEngine) -> None:
        with pytest.raises(InvalidParameter):
            async with wrapped.open([generation("good", 4000), generation("bad", 1, n=99)]):
                raise AssertionError("must not be entered")
        assert await asyncio.to_thread(idle, engine)

    run(engine, work)
