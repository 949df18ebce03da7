"""JSON bodies become the types of this package. Knows no HTTP and asks nobody.

A field that a server does not tell (an older one, or another) is None where the type allows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cairn_client.types import (
    Answer,
    Appended,
    Audit,
    Choice,
    Document,
    Found,
    Health,
    Json,
    Model,
    Passage,
    Retrieval,
    Session,
    SessionPage,
    SessionText,
    Timings,
    Tokens,
    ToolCall,
    Turn,
    Usage,
)


def session(body: Json, etag: str | None = None) -> Session:
    return Session(
        id=str(body["id"]),
        tokens=int(body["tokens"]),
        created=float(body["created"]),
        used=float(body["used"]),
        parent=body.get("parent"),
        busy=bool(body.get("busy")),
        pinned=bool(body.get("pinned")),
        ttl_seconds=body.get("ttl_seconds"),
        etag=etag,
        restored_tokens=body.get("restored_tokens"),
        raw=body,
    )


def session_page(body: Json) -> SessionPage:
    data = tuple(session(item) for item in body["data"])
    last = body.get("last_id") or (data[-1].id if data else None)
    return SessionPage(data, bool(body.get("has_more")), last)


def session_text(body: Json, etag: str | None = None) -> SessionText:
    start, end, first, last = (int(body[name]) for name in ("start_token", "end_token", "start_char", "end_char"))
    return SessionText(str(body["text"]), start, end, first, last, etag)


def answer(body: Json, session_id: str | None = None) -> Answer:
    choices = tuple(_choice(item) for item in body["choices"])
    told = (usage(body), timings(body), retrieval(body))
    return Answer(str(body["id"]), str(body["model"]), choices, *told, session_id=session_id, raw=body)


def usage(body: Json) -> Usage | None:
    told = body.get("usage")
    if not told:
        return None
    details = told.get("prompt_tokens_details") or {}
    prompt, generated, total = (int(told.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion", "total"))
    return Usage(prompt, generated, total, int(details.get("cached_tokens") or 0))


def timings(body: Json) -> Timings | None:
    told = body.get("timings")
    return Timings(*(float(told.get(name) or 0) for name in ("queue_ms", "prefill_ms", "decode_ms"))) if told else None


def retrieval(body: Json) -> Retrieval | None:
    told = body.get("retrieval")
    if not told:
        return None
    shares = {name: told.get(name) for name in ("fetched", "sinks", "local", "estimated")}
    return Retrieval(_passages(told), **shares, audit=_audit(told.get("audit")))


def appended(body: Json, etag: str | None = None) -> Appended:
    count = int(body.get("appended_tokens") or 0)
    return Appended(session(body, etag), count, usage(body), timings(body), _document(body.get("document")))


def turns(body: Json) -> tuple[Turn, ...]:
    names = ("index", "start_token", "answer_token", "end_token")
    return tuple(Turn(*(int(item[name]) for name in names)) for item in body["data"])


def found(body: Json) -> Found:
    return Found(_passages(body), usage(body))


def models(body: Json) -> tuple[Model, ...]:
    return tuple(model(item) for item in body["data"])


def model(body: Json) -> Model:
    told = {name: body.get(name) for name in ("max_model_len", "parameters", "dtype")}
    return Model(str(body["id"]), **told, retrieval=body.get("retrieval") or {}, raw=body)


def tokens(body: Json) -> Tokens:
    strings = body.get("token_strs")
    return Tokens(tuple(body["tokens"]), body.get("max_model_len"), None if strings is None else tuple(strings))


def health(status: int, body: object) -> Health:
    told = body.get("status") if isinstance(body, Mapping) else None
    return Health(status == 200, str(told or status))


def _choice(item: Json) -> Choice:
    message: Mapping[str, Any] = item.get("message") or {}
    text = message.get("content") or item.get("text") or ""
    calls = tuple(_tool_call(call) for call in message.get("tool_calls") or ())
    return Choice(int(item["index"]), text, item.get("finish_reason"), calls, item.get("logprobs"))


def _tool_call(call: Json) -> ToolCall:
    function = call.get("function") or {}
    return ToolCall(str(call.get("id") or ""), str(function.get("name") or ""), str(function.get("arguments") or ""))


def _passages(body: Json) -> tuple[Passage, ...]:
    return tuple(_passage(item) for item in body.get("passages") or ())


def _passage(item: Json) -> Passage:
    start, end = item.get("start_char", item.get("start")), item.get("end_char", item.get("end"))
    edges = (int(item["start_token"]), int(item["end_token"]), int(start or 0), int(end or 0))
    where = (item.get("document"), item.get("page"))
    return Passage(*edges, str(item["text"]), float(item["share"]), *where)


def _audit(told: Json | None) -> Audit | None:
    if not told:
        return None
    return Audit(told.get("mean"), told.get("lowest"), int(told.get("samples") or 0), told.get("blocks_per_head"))


def _document(told: Json | None) -> Document | None:
    if not told:
        return None
    start, end, count = int(told["start_token"]), int(told["end_token"]), int(told.get("characters") or 0)
    kind, pages, encoding = str(told["media_type"]), told.get("pages"), told.get("encoding")
    return Document(str(told["name"]), kind, count, pages, start, end, encoding)
