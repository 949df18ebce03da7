"""`python -m server.reference > docs/reference.md`: every route with its parameters, fields, bounds and statuses.

Made from the OpenAPI document, so that it is complete; docs/api.md explains. Knows no route of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from server.app import create_app
from server.openapi import MEANINGS, operations
from server.settings import Settings

Json = dict[str, Any]
INTRODUCTION = """\
# Reference

Every route, field, bound and status, made from the server's OpenAPI document by `python -m server.reference`; a test holds that this page is what it
makes. [The API](api.md) explains; [settings](settings.md) has the limits that an operator sets.

With keys, every route but `/health`, `/ready` and `/version` takes `Authorization: Bearer KEY`. Requests for an answer may name their session in the header
`x-session-id` instead of `session_id`. Routes that answer 412 take `If-Match`, those that answer 304 `If-None-Match`.

| status | |
|---|---|
"""  # noqa: E501
SENT = "What clients send. A field that does not stand here is refused; null is as good as left out."
TOLD = "What comes back. A field that is not *always* there is left out where there is nothing to tell."
BOUNDS = (("minimum", "from {:g}"), ("exclusiveMinimum", "above {:g}"), ("maximum", "to {:g}"))
SIZES = {"string": ("Length", "characters"), "array": ("Items", "items"), "object": ("Properties", "entries")}
HUGE = (1 << 31) - 1
"""A bound as far out as this is that of the number's type."""


def reference(document: Json) -> str:
    """The page."""
    schemas = document["components"]["schemas"]
    sent = _named([each.get("requestBody") for _, each in operations(document)], schemas)
    statuses = "".join(f"| {status} | {MEANINGS[status]} |\n" for status in sorted(MEANINGS))
    routes = "\n".join(_route(name, operation) for name, operation in operations(document))
    known = {name for name, schema in schemas.items() if schema.get("properties")}
    requests = "\n".join(_request(name, schemas[name]) for name in sorted(known & sent, key=_short))
    answers = "\n".join(_answer(name, schemas[name]) for name in sorted(known - sent, key=_short))
    parts = (("Routes", routes), ("Requests", f"{SENT}\n\n{requests}"), ("Answers", f"{TOLD}\n\n{answers}"))
    return f"{INTRODUCTION}{statuses}" + "".join(f"\n## {title}\n\n{part}" for title, part in parts)


def _named(node: Any, schemas: Json) -> set[str]:
    """The bodies that a part of the document names, and those that they name."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        told = str(waiting.pop())
        new = set(re.findall(r"'#/components/schemas/(\w+)'", told)) - found
        found |= new
        waiting += [schemas[name] for name in new]
    return found


def _route(name: str, operation: Json) -> str:
    method, path = name.split()
    answers = operation["responses"]
    [success] = [status for status in answers if status < "300"]
    lines = [f"### `{method.upper()} {path}`", "", operation["description"].strip(), ""]
    lines += [f"- {_parameter(each)}" for each in operation.get("parameters", ()) if each["in"] != "path"]
    if "requestBody" in operation:
        optional = "" if operation["requestBody"].get("required") else "; may be left out"
        lines.append(f"- body: {_contents(operation['requestBody']['content'])}{optional}")
    lines.append(f"- {success}: {_contents(answers[success]['content'])}")
    others = sorted(answers.keys() - {success})
    return "\n".join([*lines, *([f"- else {', '.join(others)}"] if others else [])]) + "\n"


def _parameter(parameter: Json) -> str:
    return f"{parameter['in']} `{parameter['name']}`: {_told(parameter['schema'])}"


def _contents(contents: Json) -> str:
    """What a body may be: JSON by its name, a form by its fields, all else by its media type."""
    kinds = []
    for media, content in contents.items():
        if media == "application/json":
            kinds.append(kind(content["schema"]))
        elif media.startswith("multipart"):
            fields = content["schema"]["properties"].items()
            kinds.append(f"`{media}` with " + ", ".join(f"`{name}` ({_told(told)})" for name, told in fields))
        else:
            kinds.append(f"`{media}`")
    return " or ".join(kinds)


def _request(name: str, schema: Json) -> str:
    required = schema.get("required", ())
    told = {field: ("*required*: " if field in required else "") + _told(each) for field, each in _fields(schema)}
    return _table(name, told)


def _answer(name: str, schema: Json) -> str:
    always = schema.get("required", ())
    told = {}
    for field, each in _fields(schema):
        null = ", or null" if {"type": "null"} in each.get("anyOf", ()) else ""
        told[field] = ("*always*: " if field in always else "") + kind(each) + null
    return _table(name, told)


def _fields(schema: Json) -> Iterable[tuple[str, Json]]:
    return schema["properties"].items()


def _table(name: str, fields: dict[str, str]) -> str:
    rows = "".join(f"| `{field}` | {told} |\n" for field, told in fields.items())
    return f"### {_short(name)}\n\n| field | |\n|---|---|\n{rows}"


def _told(schema: Json) -> str:
    told, default = kind(schema), schema.get("default")
    return told if default is None or "const" in schema else f"{told}; `{_literal(default)}` if left out"


def kind(schema: Json) -> str:
    """What a value may be, in words."""
    if "$ref" in schema:
        name = _short(schema["$ref"].rpartition("/")[2])
        if name == "Wire":
            return "object without fields"
        return f"[{name}](#{name.lower()})"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{_literal(value)}`" for value in schema.get("enum", [schema.get("const")]))
    several = [each for each in schema.get("anyOf") or schema.get("oneOf") or () if each != {"type": "null"}]
    if several:
        return ", or ".join(dict.fromkeys(kind(each) for each in several))
    return ", ".join([_plain(schema), *_limits(schema)])


def _plain(schema: Json) -> str:
    """A type, with what is in it."""
    told = str(schema.get("type", "any value"))
    inner = schema.get("items") or schema.get("additionalProperties")
    if told == "null":
        return "null alone"
    named = {"array": "list", "boolean": "true or false"}.get(told, told)
    return f"{named} of ({kind(inner)})" if isinstance(inner, dict) and inner else named


def _limits(schema: Json) -> Iterator[str]:
    within = [text.format(schema[key]) for key, text in BOUNDS if key in schema and abs(schema[key]) < HUGE]
    if within:
        yield " ".join(within)
    suffix, unit = SIZES.get(schema.get("type", ""), ("", ""))
    least, most = schema.get(f"min{suffix}", 0), schema.get(f"max{suffix}")
    if most is not None:
        yield f"{least} to {most} {unit}" if least else f"at most {most} {unit}"
    elif least:
        yield f"at least {least} {unit}"
    if "pattern" in schema:
        yield f"`{schema['pattern']}`"


def _literal(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def _short(name: str) -> str:
    """A body's name without its module; the module's last word goes before it where two have the same name."""
    module, _, last = name.rpartition("__")
    return last if module in ("", "server__schemas") else "Response" + last


if __name__ == "__main__":
    print(reference(create_app(Settings()).openapi()), end="")
