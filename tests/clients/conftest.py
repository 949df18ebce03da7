"""One real server with a key, small models, and the client in both its forms."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import pytest
from cairn_client import AsyncCairn, AsyncStream, Cairn

from tests.server.conftest import Start, start, tiny_folder

__all__ = ["start", "tiny_folder"]
KEY = "the-key"
ROOT = Path(__file__).parents[2]
# Programs that tests start use this checkout's client, whatever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python" / "src")])


@pytest.fixture(scope="session")
def url(start: Start, tiny_folder: Path) -> Iterator[str]:
    """The address of a server with a random model, which wants `KEY`."""
    with start(tiny_folder, api_keys=KEY, keepalive_seconds=0.02, step_tokens=2048) as (client, _):
        yield str(client.base_url).rstrip("/")


@pytest.fixture
def cairn(url: str) -> Iterator[Cairn]:
    """The synchronous client."""
    with Cairn(url, api_key=KEY) as client:
        yield client


@pytest.fixture(params=["sync", "async"])
def either(request: pytest.FixtureRequest, make: Callable[..., Cairn], url: str) -> Cairn:
    """Both clients, one after the other; the asynchronous one is driven as if it were the other."""
    return make(request.param, url, api_key=KEY)


@pytest.fixture
def make() -> Iterator[Callable[..., Cairn]]:
    """Makes a client, sync or async, that is closed after the test."""
    loop = Loop()
    made: list[Any] = []

    def client(kind: str, *arguments: Any, **named: Any) -> Cairn:
        made.append(Cairn(*arguments, **named) if kind == "sync" else loop.driven(AsyncCairn(*arguments, **named)))
        return cast(Cairn, made[-1])

    yield client
    for each in made:
        each.close()
    loop.close()


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def driven(self, target: Any) -> Driven:
        return Driven(target, self)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Driven:
    """An asynchronous object whose methods are called as those of its synchronous twin."""

    def __init__(self, target: Any, loop: Loop) -> None:
        self._target, self._loop = target, loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return self._loop.driven(found) if name == "sessions" else found
        return lambda *arguments, **named: self._result(found(*arguments, **named))

    def _result(self, result: Any) -> Any:
        if inspect.iscoroutine(result):
            return self._loop.run(result)
        if inspect.isasyncgen(result):
            return self._items(result)
        return self._loop.driven(result) if isinstance(result, AsyncStream) else result

    def _items(self, generator: Any) -> Iterator[Any]:
        while True:
            try:
                yield self._loop.run(anext(generator))
            except StopAsyncIteration:
                return

    def __enter__(self) -> Self:
        self._loop.run(self._target.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._target.__aexit__(kind, error, trace))

    def __iter__(self) -> Iterator[Any]:
        return self._items(self._target.__aiter__())
