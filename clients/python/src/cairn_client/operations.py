"""Each call of the API as a value: what is sent, and how its answer is read. Sends nothing itself.

The synchronous and the asynchronous client send the same operations, so that there is one place for each call.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote

from cairn_client import reading
from cairn_client.errors import BadReply, parsed
from cairn_client.events import AppendCollector, Collector, Event, Progress
from cairn_client.files import Upload
from cairn_client.options import Message
from cairn_client.types import (
    Answer,
    Appended,
    Found,
    Health,
    Json,
    Model,
    Session,
    SessionPage,
    SessionText,
    Tokens,
    Turn,
)

Result = TypeVar("Result")
Told = TypeVar("Told", covariant=True)
Whole = TypeVar("Whole", covariant=True)
SessionLike = Session | str


@dataclass(frozen=True)
class Reply:
    """An answer that is read whole."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""

    def json(self) -> Json:
        """The body; BadReply if it is no JSON object."""
        body = parsed(self.content)
        if not isinstance(body, dict):
            raise BadReply(f"the answer is no JSON object: {self.content[:80]!r}")
        return body


@dataclass(frozen=True)
class Request:
    """What is sent.

    Attributes:
        form: text fields that go with `upload` as multipart/form-data; None sends the file as the body itself
        repeatable: whether sending it twice does what sending it once does
        absent_is_done: a repeated request that finds nothing any more was done by the first
        accepts: statuses that are no errors, beside those below 400
        timeout: seconds without a sign of life; None: as the client is set
    """

    method: str
    path: str
    body: Json | None = None
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    upload: Upload | None = None
    form: Mapping[str, str] | None = None
    repeatable: bool = True
    absent_is_done: bool = False
    accepts: frozenset[int] = frozenset()
    timeout: float | None = None


@dataclass(frozen=True)
class Call(Generic[Result]):
    """A request whose answer is read whole."""

    request: Request
    parse: Callable[[Reply], Result]

    def result(self, reply: Reply) -> Result:
        """BadReply if the answer is not what this call is answered with."""
        try:
            return self.parse(reply)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            told = f"the answer to {self.request.method} {self.request.path} is not understood: {error!r}"
            raise BadReply(told) from error


class Collects(Protocol[Told, Whole]):
    """Makes events of a stream's chunks, and a whole of all of them."""

    def events(self, chunk: Json) -> Iterator[Told]: ...
    def answer(self, session_id: str | None = None) -> Whole: ...


@dataclass(frozen=True)
class Streaming(Generic[Told, Whole]):
    """A request that is answered by a stream of events."""

    request: Request
    collector: Callable[[], Collects[Told, Whole]]


# -- the server ----------------------------------------------------------------------------------------------


def probe(name: str) -> Call[Health]:
    request = Request("GET", f"/{name}", accepts=frozenset({503}), timeout=5.0)
    return Call(request, lambda reply: reading.health(reply.status, parsed(reply.content)))


def version() -> Call[str]:
    return Call(Request("GET", "/version"), lambda reply: str(reply.json()["version"]))


def metrics() -> Call[str]:
    return Call(Request("GET", "/metrics"), lambda reply: reply.content.decode())


def models() -> Call[tuple[Model, ...]]:
    return Call(Request("GET", "/v1/models"), lambda reply: reading.models(reply.json()))


def model(name: str) -> Call[Model]:
    return Call(Request("GET", f"/v1/models/{quote(name)}"), lambda reply: reading.model(reply.json()))


def tokenize(text: str | Sequence[Message], special: bool, strings: bool) -> Call[Tokens]:
    body: Json = {"prompt": text} if isinstance(text, str) else {"messages": list(text)}
    body |= {"add_special_tokens": special, "return_token_strs": strings}
    return Call(Request("POST", "/tokenize", body), lambda reply: reading.tokens(reply.json()))


def detokenize(tokens: Sequence[int]) -> Call[str]:
    request = Request("POST", "/detokenize", {"tokens": list(tokens)})
    return Call(request, lambda reply: str(reply.json()["prompt"]))


# -- answers -------------------------------------------------------------------------------------------------


def chat(messages: str | Sequence[Message], session: SessionLike | None, options: Mapping[str, Any]) -> Call[Answer]:
    return Call(_chat(messages, session, options), _answer)


def chat_stream(
    messages: str | Sequence[Message], session: SessionLike | None, options: Mapping[str, Any]
) -> Streaming[Event, Answer]:
    return Streaming(_chat(messages, session, options, stream=True), Collector)


def complete(prompt: object, session: SessionLike | None, options: Mapping[str, Any]) -> Call[Answer]:
    return Call(_generation("/v1/completions", {"prompt": prompt}, session, options), _answer)


def complete_stream(
    prompt: object, session: SessionLike | None, options: Mapping[str, Any]
) -> Streaming[Event, Answer]:
    return Streaming(_generation("/v1/completions", {"prompt": prompt}, session, options, stream=True), Collector)


def _chat(
    messages: str | Sequence[Message], session: SessionLike | None, options: Mapping[str, Any], stream: bool = False
) -> Request:
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return _generation("/v1/chat/completions", {"messages": said}, session, options, stream)


def _generation(
    path: str, body: Json, session: SessionLike | None, options: Mapping[str, Any], stream: bool = False
) -> Request:
    named = {name: value for name, value in options.items() if name != "extra_body" and value is not None}
    body = body | named | dict(options.get("extra_body") or {})
    if session is not None:
        body["session_id"] = session_id(session)
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
    # In a session, what was said once must not be said twice; without one nothing stays behind.
    return Request("POST", path, body, repeatable=session is None)


def _answer(reply: Reply) -> Answer:
    return reading.answer(reply.json(), reply.headers.get("x-session-id"))


# -- sessions ------------------------------------------------------------------------------------------------


def create(pinned: bool, ttl_seconds: float | None, key: str | None) -> Call[Session]:
    body: Json = {"pinned": pinned} if pinned else {}
    body |= {} if ttl_seconds is None else {"ttl_seconds": ttl_seconds}
    return Call(Request("POST", "/v1/sessions", body, headers=_once(key)), _session)


def page(limit: int, after: str | None, order: str | None) -> Call[SessionPage]:
    query = {"limit": limit, "after": after, "order": order}
    given = {name: value for name, value in query.items() if value is not None}
    return Call(Request("GET", "/v1/sessions", query=given), lambda reply: reading.session_page(reply.json()))


def get(session: SessionLike) -> Call[Session]:
    return Call(Request("GET", _path(session)), _session)


def change(session: SessionLike, pinned: bool | None, ttl_seconds: float | None, if_match: str | None) -> Call[Session]:
    asked = {"pinned": pinned, "ttl_seconds": ttl_seconds}
    body = {name: value for name, value in asked.items() if value is not None}
    return Call(Request("PATCH", _path(session), body, headers=_unchanged(if_match)), _session)


def text(session: SessionLike, start_token: int | None, end_token: int | None) -> Call[SessionText]:
    edges = {"start_token": start_token, "end_token": end_token}
    query = {name: value for name, value in edges.items() if value is not None}
    request = Request("GET", _path(session, "text"), query=query)
    return Call(request, lambda reply: reading.session_text(reply.json(), reply.headers.get("etag")))


def append(session: SessionLike, added: str, if_match: str | None) -> Streaming[Progress, Appended]:
    body = {"text": added, "stream": True}
    headers = _unchanged(if_match)
    return Streaming(
        Request("POST", _path(session, "append"), body, headers=headers, repeatable=False), AppendCollector
    )


def add_document(session: SessionLike, upload: Upload, if_match: str | None) -> Streaming[Progress, Appended]:
    path, form = _path(session, "documents"), {"stream": "true"}
    headers = _unchanged(if_match)
    request = Request("POST", path, headers=headers, upload=upload, form=form, repeatable=False)
    return Streaming(request, AppendCollector)


def fork(session: SessionLike, key: str | None) -> Call[Session]:
    return Call(Request("POST", _path(session, "fork"), headers=_once(key)), _session)


def delete(session: SessionLike, if_match: str | None) -> Call[None]:
    request = Request("DELETE", _path(session), headers=_unchanged(if_match), absent_is_done=True)
    return Call(request, lambda reply: None)


def turns(session: SessionLike) -> Call[tuple[Turn, ...]]:
    return Call(Request("GET", _path(session, "turns")), lambda reply: reading.turns(reply.json()))


def rewind(session: SessionLike, turn: int | None, tokens: int | None, if_match: str | None) -> Call[Session]:
    if (turn is None) == (tokens is None):
        raise ValueError("give either turn or tokens")
    body = {"tokens": tokens} if turn is None else {"turn": turn}
    headers = _unchanged(if_match)
    return Call(Request("POST", _path(session, "rewind"), body, headers=headers, repeatable=False), _session)


def search(session: SessionLike, query: str, passages: int, blocks_per_head: int | None) -> Call[Found]:
    body: Json = {"query": query, "passages": passages}
    body |= {} if blocks_per_head is None else {"blocks_per_head": blocks_per_head}
    return Call(Request("POST", _path(session, "search"), body), lambda reply: reading.found(reply.json()))


def export(session: SessionLike, kv: bool) -> Request:
    return Request("GET", _path(session, "export"), query={} if kv else {"kv": "false"})


def import_from(upload: Upload, kv: bool, key: str | None) -> Call[Session]:
    headers = {"Content-Type": "application/vnd.cairn.session", **_once(key)}
    path, query = "/v1/sessions/import", {} if kv else {"kv": "false"}
    return Call(Request("POST", path, query=query, headers=headers, upload=upload, repeatable=upload.again), _session)


def session_id(session: SessionLike) -> str:
    return session if isinstance(session, str) else session.id


def _path(session: SessionLike, part: str = "") -> str:
    name = session_id(session)
    if not name:
        raise ValueError("the id of a session must not be empty")
    return f"/v1/sessions/{quote(name, safe='')}" + (f"/{part}" if part else "")


def _session(reply: Reply) -> Session:
    return reading.session(reply.json(), reply.headers.get("etag"))


def _once(key: str | None) -> dict[str, str]:
    """A repeated creation with the same key gives what the first one made."""
    return {"Idempotency-Key": key or uuid.uuid4().hex}


def _unchanged(if_match: str | None) -> dict[str, str]:
    return {} if if_match is None else {"If-Match": if_match}
