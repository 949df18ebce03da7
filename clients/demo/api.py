"""The calls that the demo makes, over HTTP. Knows the server's wire format and nothing about facts or printing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from clients.demo.errors import RequestError
from clients.demo.sse import Json, error_message, events

# Nothing on the way is silent for minutes: a long read sends progress, and comments in between.
TIMEOUT = httpx.Timeout(10.0, read=300.0, write=60.0)


@dataclass(frozen=True)
class Passage:
    """A part of the session that the answer read: tokens [start, end), its text, and its share of the attention."""

    start: int
    end: int
    text: str
    share: float


@dataclass(frozen=True)
class Answer:
    """What came back for a question.

    Attributes:
        first: seconds to the first piece of text; seconds: to the end of the stream
        prompt_tokens: the whole session before the answer; cached_tokens: the part that was not computed again
    """

    text: str
    first: float
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    passages: tuple[Passage, ...]


class Api:
    """A server at `url`; use it as a context manager."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def healthy(self) -> bool:
        """Whether the server runs and its model is loaded."""
        try:
            return self._client.get("/health", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    def model(self) -> str:
        return str(self._call("GET", "/v1/models").json()["data"][0]["id"])

    def count(self, text: str) -> int:
        """How many tokens `text` has."""
        body = {"prompt": text, "add_special_tokens": False}
        return int(self._call("POST", "/tokenize", body).json()["count"])

    def metrics(self) -> str:
        return self._call("GET", "/metrics").text

    @contextlib.contextmanager
    def session(self) -> Iterator[str]:
        """The id of a new session, which is deleted at the end."""
        session = str(self._call("POST", "/v1/sessions", {}).json()["id"])
        try:
            yield session
        finally:
            with contextlib.suppress(httpx.HTTPError):
                self._client.delete(f"/v1/sessions/{session}", timeout=5.0)

    def append(self, session: str, text: str, progress: Callable[[int, int], None]) -> None:
        """Read `text` into the session; `progress` hears tokens of the session that are read, and their total."""
        for event in self._stream(f"/v1/sessions/{session}/append", {"text": text, "stream": True}):
            if told := event.get("prompt_progress"):
                progress(int(told["processed"]), int(told["total"]))

    def ask(self, session: str, model: str, question: str, heard: Callable[[str], None]) -> Answer:
        """Ask in the session; `heard` gets the answer's text as it comes."""
        start = time.perf_counter()
        first: float | None = None
        text, last = "", _Last()
        for event in self._stream("/v1/chat/completions", _question(session, model, question)):
            last.note(event)
            if piece := _content(event):
                first = first if first is not None else time.perf_counter() - start
                text += piece
                heard(piece)
        seconds = time.perf_counter() - start
        return last.answer(text, seconds if first is None else first, seconds)

    def _call(self, method: str, path: str, body: Json | None = None) -> httpx.Response:
        with _reachable(path):
            response = self._client.request(method, path, json=body)
        if response.is_error:
            raise _refusal(path, response)
        return response

    def _stream(self, path: str, body: Json) -> Iterator[Json]:
        with _reachable(path), self._client.stream("POST", path, json=body) as response:
            if response.is_error:
                response.read()
                raise _refusal(path, response)
            yield from events(response.iter_bytes())


class _Last:
    """What the last chunks of a stream tell: usage, and which passages were read."""

    def __init__(self) -> None:
        self._usage: Json = {}
        self._passages: tuple[Passage, ...] = ()

    def note(self, event: Json) -> None:
        self._usage = event.get("usage") or self._usage
        if found := event.get("retrieval"):
            self._passages = tuple(_passage(item) for item in found.get("passages") or ())

    def answer(self, text: str, first: float, seconds: float) -> Answer:
        cached = (self._usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Answer(text, first, seconds, int(self._usage.get("prompt_tokens", 0)), int(cached), self._passages)


def connect(url: str, key: str | None = None, *, local: bool = False) -> httpx.Client:
    """A client for the server at `url`; for a `local` one, proxies of the environment are left aside."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT, trust_env=not local)


def _question(session: str, model: str, question: str) -> Json:
    return {
        "model": model,
        "session_id": session,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": 40,
        "retrieval": {"provenance": True, "passages": 3},
    }


def _content(event: Json) -> str:
    choices: list[dict[str, Any]] = event.get("choices") or []
    return str((choices[0].get("delta") or {}).get("content") or "") if choices else ""


def _passage(item: Json) -> Passage:
    return Passage(int(item["start_token"]), int(item["end_token"]), str(item["text"]), float(item["share"]))


@contextlib.contextmanager
def _reachable(path: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise RequestError(f"{path}: {error or type(error).__name__}") from error


def _refusal(path: str, response: httpx.Response) -> RequestError:
    try:
        message = error_message(response.json())
    except ValueError:
        message = response.text[:200]
    return RequestError(f"{path} was refused with {response.status_code}: {message}")
