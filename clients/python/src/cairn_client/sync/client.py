"""`Cairn`: a server, asked synchronously."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

import httpx

from cairn_client import operations
from cairn_client.errors import NotReachable
from cairn_client.operations import SessionLike
from cairn_client.options import ChatOptions, CompletionOptions, Message
from cairn_client.sending import Retries, address, settings
from cairn_client.sync.sender import Sender
from cairn_client.sync.sessions import Sessions
from cairn_client.sync.streams import AnswerStream
from cairn_client.types import Answer, Health, Model, Tokens
from cairn_client.waiting import POLL_SECONDS, Waiting


class Cairn:
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
        http: httpx.Client | None = None,
    ) -> None:
        self._http = http or httpx.Client(**settings(address(url), api_key, timeout))
        self._sender = Sender(self._http, retries or Retries())
        self.sessions = Sessions(self._sender)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._sender.close()

    @property
    def url(self) -> str:
        return str(self._http.base_url).rstrip("/")

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        session: SessionLike | None = None,
        **options: Unpack[ChatOptions],
    ) -> Answer:
        """The answer to a question or to messages; in a session, they are only what is new."""
        return self._sender.call(operations.chat(messages, session, options))

    def chat_stream(
        self,
        messages: str | Sequence[Message],
        *,
        session: SessionLike | None = None,
        **options: Unpack[ChatOptions],
    ) -> AnswerStream:
        """The same as a stream of events."""
        return AnswerStream(self._sender, operations.chat_stream(messages, session, options))

    def complete(
        self,
        prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        *,
        session: SessionLike | None = None,
        **options: Unpack[CompletionOptions],
    ) -> Answer:
        """How a text, or tokens, go on."""
        return self._sender.call(operations.complete(prompt, session, options))

    def complete_stream(
        self,
        prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        *,
        session: SessionLike | None = None,
        **options: Unpack[CompletionOptions],
    ) -> AnswerStream:
        """The same as a stream of events."""
        return AnswerStream(self._sender, operations.complete_stream(prompt, session, options))

    def models(self) -> tuple[Model, ...]:
        return self._sender.call(operations.models())

    def model(self, name: str) -> Model:
        return self._sender.call(operations.model(name))

    def tokenize(self, text: str | Sequence[Message], *, special_tokens: bool = True, strings: bool = False) -> Tokens:
        """The tokens of a text, or of messages and the beginning of their answer."""
        return self._sender.call(operations.tokenize(text, special_tokens, strings))

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._sender.call(operations.detokenize(tokens))

    def health(self) -> Health:
        """Whether the server is alive and its model loaded."""
        return self._sender.call(operations.probe("health"))

    def ready(self) -> Health:
        """Whether the server takes requests."""
        return self._sender.call(operations.probe("ready"))

    def wait_until_ready(self, timeout: float = 120.0) -> None:
        """Return once the server takes requests; NotReady after `timeout` seconds, or if it can not load its model."""
        waiting = Waiting(self.url, timeout)
        probing = Sender(self._http, Retries(attempts=0))
        while True:
            with contextlib.suppress(NotReachable):
                if waiting.over(probing.call(operations.probe("ready"))):
                    return
            waiting.check()
            time.sleep(POLL_SECONDS)

    def version(self) -> str:
        """The server's."""
        return self._sender.call(operations.version())

    def metrics(self) -> str:
        """The server's, in Prometheus' text format."""
        return self._sender.call(operations.metrics())
