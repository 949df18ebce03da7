"""`AsyncCairn`: a server, asked asynchronously."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

import httpx

from cairn_client import operations
from cairn_client.aio.sender import AsyncSender
from cairn_client.aio.sessions import AsyncSessions
from cairn_client.aio.streams import AsyncAnswerStream
from cairn_client.errors import NotReachable
from cairn_client.operations import SessionLike
from cairn_client.options import ChatOptions, CompletionOptions, Message
from cairn_client.sending import Retries, address, settings
from cairn_client.types import Answer, Health, Model, Tokens
from cairn_client.waiting import POLL_SECONDS, Waiting


class AsyncCairn:
    """A server at `url` (else CAIRN_URL, else http://127.0.0.1:8000).

    Args:
        url: with or without the /v1 that OpenAI's client takes
        api_key: else CAIRN_API_KEY; None where the server wants none
        timeout: seconds without a sign of life, or httpx's own
        retries: how often and how patiently a request is sent again
        http: a client of httpx to send with, set up as you need it; then the other arguments but `retries` are not used
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = None,
        retries: Retries | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._http = http or httpx.AsyncClient(**settings(address(url), api_key, timeout))
        self._sender = AsyncSender(self._http, retries or Retries())
        self.sessions = AsyncSessions(self._sender)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._sender.close()

    @property
    def url(self) -> str:
        return str(self._http.base_url).rstrip("/")

    async def chat(
        self,
        messages: str | Sequence[Message],
        *,
        session: SessionLike | None = None,
        **options: Unpack[ChatOptions],
    ) -> Answer:
        """The answer to a question or to messages; in a session, they are only what is new."""
        return await self._sender.call(operations.chat(messages, session, options))

    def chat_stream(
        self,
        messages: str | Sequence[Message],
        *,
        session: SessionLike | None = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncAnswerStream:
        """The same as a stream of events."""
        return AsyncAnswerStream(self._sender, operations.chat_stream(messages, session, options))

    async def complete(
        self,
        prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        *,
        session: SessionLike | None = None,
        **options: Unpack[CompletionOptions],
    ) -> Answer:
        """How a text, or tokens, go on."""
        return await self._sender.call(operations.complete(prompt, session, options))

    def complete_stream(
        self,
        prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        *,
        session: SessionLike | None = None,
        **options: Unpack[CompletionOptions],
    ) -> AsyncAnswerStream:
        """The same as a stream of events."""
        return AsyncAnswerStream(self._sender, operations.complete_stream(prompt, session, options))

    async def models(self) -> tuple[Model, ...]:
        return await self._sender.call(operations.models())

    async def model(self, name: str) -> Model:
        return await self._sender.call(operations.model(name))

    async def tokenize(
        self, text: str | Sequence[Message], *, special_tokens: bool = True, strings: bool = False
    ) -> Tokens:
        """The tokens of a text, or of messages and the beginning of their answer."""
        return await self._sender.call(operations.tokenize(text, special_tokens, strings))

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return await self._sender.call(operations.detokenize(tokens))

    async def health(self) -> Health:
        """Whether the server is alive and its model loaded."""
        return await self._sender.call(operations.probe("health"))

    async def ready(self) -> Health:
        """Whether the server takes requests."""
        return await self._sender.call(operations.probe("ready"))

    async def wait_until_ready(self, timeout: float = 120.0) -> None:
        """Return once the server takes requests; NotReady after `timeout` seconds, or if it can not load its model."""
        waiting = Waiting(self.url, timeout)
        probing = AsyncSender(self._http, Retries(attempts=0))
        while True:
            with contextlib.suppress(NotReachable):
                if waiting.over(await probing.call(operations.probe("ready"))):
                    return
            waiting.check()
            await asyncio.sleep(POLL_SECONDS)

    async def version(self) -> str:
        """The server's."""
        return await self._sender.call(operations.version())

    async def metrics(self) -> str:
        """The server's, in Prometheus' text format."""
        return await self._sender.call(operations.metrics())
