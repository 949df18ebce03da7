"""Sends requests and tries again. Knows no call of the API."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

import httpx

from cairn_client.errors import CairnError
from cairn_client.operations import Call, Reply, Request
from cairn_client.sending import Attempts, Retries, announced, check, failures, form, plain, reply_of

Result = TypeVar("Result")


class AsyncSender:
    """One server, and how patiently it is asked."""

    def __init__(self, http: httpx.AsyncClient, retries: Retries) -> None:
        self._http, self._retries = http, retries

    async def call(self, call: Call[Result]) -> Result:
        """The result of a call."""
        return call.result(await self._persist(call.request, lambda: self._reply(call.request)) or Reply())

    async def open(self, request: Request) -> httpx.Response:
        """A response whose body is still to be read, and which is to be closed."""
        response = await self._persist(request, lambda: self._opened(request))
        assert response is not None, "only a deletion can be settled by its repetition"
        return response

    async def pieces(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """The body of an open response."""
        with self._failures():
            async for piece in response.aiter_bytes():
                yield piece

    async def close(self) -> None:
        await self._http.aclose()

    async def _persist(self, request: Request, send: Callable[[], Awaitable[Result]]) -> Result | None:
        """What `send` gives at last; None if its failure says that it was done before."""
        attempts = Attempts(self._retries, request)
        while True:
            try:
                return await send()
            except CairnError as error:
                if attempts.settles(error):
                    return None
                await asyncio.sleep(attempts.after(error))

    async def _reply(self, request: Request) -> Reply:
        with self._failures(), self._built(request) as built:
            return reply_of(request, await self._http.send(built))

    async def _opened(self, request: Request) -> httpx.Response:
        with self._failures(), self._built(request) as built:
            response = await self._http.send(built, stream=True)
            if response.is_error:
                async with contextlib.aclosing(response):
                    check(request, response, await response.aread())
            return response

    @contextlib.contextmanager
    def _built(self, request: Request) -> Iterator[httpx.Request]:
        """httpx's request, whose file is open for as long as it is sent."""
        if request.upload is None:
            yield self._http.build_request(**plain(request))
            return
        with request.upload.opened() as file:
            if request.form is None:
                body = {"headers": announced(request, file), "content": _pieces(request.upload.pieces(file))}
            else:
                body = form(request, file)
            yield self._http.build_request(**plain(request) | body)

    def _failures(self) -> contextlib.AbstractContextManager[None]:
        return failures(str(self._http.base_url).rstrip("/"))


async def _pieces(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Pieces of a local file, each read in less time than it takes to hand it to a thread."""
    for piece in pieces:
        yield piece
