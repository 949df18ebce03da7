"""The OpenAPI document: FastAPI's, with what every route may answer.

Owns which body a success has, and which errors belong to which kind of route, in one table each. Routes declare only
what is special to them (`responses=` in the decorator stays as it is).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server import bodies
from server.middleware import METRICS, PROBES, is_admin

Json = dict[str, Any]
METHODS = ("get", "post", "put", "patch", "delete")
REF = "#/components/schemas/{model}"

ANSWERS: dict[str, type[BaseModel]] = {
    "post /v1/chat/completions": bodies.ChatCompletion,
    "post /v1/completions": bodies.Completion,
    "get /v1/models": bodies.ModelList,
    "get /v1/models/{model_id}": bodies.ModelCard,
    "post /tokenize": bodies.Tokens,
    "post /detokenize": bodies.Prompt,
    "post /v1/sessions": bodies.Session,
    "get /v1/sessions": bodies.SessionList,
    "get /v1/sessions/{session_id}": bodies.Session,
    "patch /v1/sessions/{session_id}": bodies.Session,
    "delete /v1/sessions/{session_id}": bodies.DeletedSession,
    "get /v1/sessions/{session_id}/text": bodies.SessionText,
    "post /v1/sessions/{session_id}/append": bodies.AppendedSession,
    "post /v1/sessions/{session_id}/fork": bodies.Session,
    "post /v1/sessions/{session_id}/documents": bodies.SessionWithDocument,
    "get /v1/sessions/{session_id}/turns": bodies.TurnList,
    "post /v1/sessions/{session_id}/rewind": bodies.Session,
    "post /v1/sessions/{session_id}/search": bodies.SessionSearch,
    "post /v1/sessions/import": bodies.ImportedSession,
    "post /v1/responses": bodies.Response,
    "get /v1/responses/{response_id}": bodies.Response,
    "delete /v1/responses/{response_id}": bodies.DeletedResponse,
    "post /v1/responses/{response_id}/cancel": bodies.Response,
    "get /v1/responses/{response_id}/input_items": bodies.ItemList,
    "get /health": bodies.Health,
    "get /ready": bodies.Health,
    "get /version": bodies.Version,
    "get /admin/tenants": bodies.TenantList,
    "post /admin/keys/reload": bodies.LoadedKeys,
    "post /admin/drain": bodies.Draining,
}
"""The JSON body of a success."""

OTHER: dict[str, str] = {
    "get /metrics": "text/plain",
    "post /v1/chat/completions": "text/event-stream",
    "post /v1/completions": "text/event-stream",
    "post /v1/sessions/{session_id}/append": "text/event-stream",
    "post /v1/sessions/{session_id}/documents": "text/event-stream",
    "post /v1/responses": "text/event-stream",
    "get /v1/sessions/{session_id}/export": "application/vnd.cairn.session",
}
"""What a success may be beside JSON, or instead of it."""

FILES = {"post /v1/sessions/import": "application/vnd.cairn.session"}
"""What takes a file as its body."""

SPECIAL: dict[str, tuple[int, ...]] = {
    "post /v1/sessions": (422,),
    "post /v1/sessions/{session_id}/fork": (422,),
    "get /v1/sessions/{session_id}": (304,),
    "get /v1/sessions/{session_id}/text": (304,),
    "patch /v1/sessions/{session_id}": (412,),
    "delete /v1/sessions/{session_id}": (412,),
    "post /v1/sessions/{session_id}/append": (412,),
    "post /v1/sessions/{session_id}/rewind": (412,),
    "post /v1/sessions/{session_id}/documents": (412, 422),
    "post /v1/sessions/import": (413, 422),
    "post /v1/responses": (409, 504),
    "delete /v1/responses/{response_id}": (409,),
}
"""What only some may answer."""

MEANINGS = {
    304: "The session is still what `If-None-Match` names.",
    400: "The request is wrong; `param` names the field.",
    401: "No valid API key.",
    403: "The key may not do this.",
    404: "There is no such model, session or route.",
    409: "Another request is running in the session.",
    412: "The session is no longer what `If-Match` names.",
    413: "The body, or the text, is larger than what can ever be taken.",
    415: "The body is not said to be JSON, or the file is of another kind.",
    422: "The idempotency key stands for another request, or the file's text cannot be had.",
    429: "A limit is passed, or the server is full; `Retry-After` tells when to come back.",
    500: "The server has failed.",
    504: "The request took longer than the server allows.",
    503: "The model loads, or the server shuts down; `Retry-After` tells when to come back.",
}


class Api(FastAPI):
    """FastAPI, whose document tells what is answered."""

    def openapi(self) -> Json:
        """The document; made once."""
        if self.openapi_schema is None:
            complete(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema


def complete(document: Json) -> None:
    """Add what each operation answers."""
    models: set[type[BaseModel]] = {*ANSWERS.values(), bodies.ErrorBody}
    _, made = models_json_schema([(model, "serialization") for model in models], ref_template=REF)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.update(made["$defs"])
    for leftover in ("HTTPValidationError", "ValidationError"):  # FastAPI's own 422, which is never sent
        schemas.pop(leftover, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for name, operation in operations(document):
        if name in FILES:
            binary = {"schema": {"type": "string", "format": "binary"}}
            operation["requestBody"] = {"required": True, "content": {FILES[name]: binary}}
        operation["responses"] = _responses(name, operation)
        if name.split()[1] not in PROBES:
            operation["security"] = [{"key": []}, {}]  # none is needed where the server has no keys


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    """Each operation by its method and path, as in `post /v1/completions`."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield f"{method} {path}", item[method]


def _responses(name: str, operation: Json) -> Json:
    declared = {
        status: told for status, told in operation["responses"].items() if "HTTPValidationError" not in str(told)
    }
    for status, told in declared.items():
        if status.startswith("2"):
            told["content"] = _content(name) or told.get("content", {})
    errors = {str(status): _error(status) for status in _statuses(name, operation)}
    special = {status: {**_error(int(status)), **told} for status, told in declared.items() if status >= "400"}
    return {**declared, **errors, **special, **_probe(name)}


def _content(name: str) -> Json:
    answer = {"application/json": {"schema": _schema(ANSWERS[name])}} if name in ANSWERS else {}
    return answer | ({OTHER[name]: {"schema": {"type": "string"}}} if name in OTHER else {})


def _statuses(name: str, operation: Json) -> Iterator[int]:
    """The errors of an operation, by what kind of operation it is."""
    method, path = name.split()
    yield from SPECIAL.get(name, ())
    if path in PROBES:
        return
    yield from (401, 403, 429, 500, 503)
    body, parameters = "requestBody" in operation, operation.get("parameters")
    if path != METRICS:  # an unknown query parameter is refused anywhere else
        yield 400
    if body or parameters or is_admin(path):
        yield 404
    if body:
        yield from (413, 415)
    if (path.startswith("/v1/sessions/") and method != "get") or path.endswith("completions"):
        yield from (409, 504)


def _error(status: int) -> Json:
    if status == 304:
        return {"description": MEANINGS[status]}
    content = {"application/json": {"schema": _schema(bodies.ErrorBody)}}
    headers = {"Retry-After": {"schema": {"type": "integer"}, "required": True}} if status in (429, 503) else {}
    told = {"description": MEANINGS.get(status, "The request cannot be done."), "content": content}
    return told | ({"headers": headers} if headers else {})


def _probe(name: str) -> Json:
    """A probe says no with its usual body."""
    if name not in ("get /health", "get /ready"):
        return {}
    return {"503": {"description": "Not now.", "content": _content(name)}}


def _schema(model: type[BaseModel]) -> Json:
    return {"$ref": REF.format(model=model.__name__)}
