"""Every field that the official client's types know, however deep, each in a request that is otherwise minimal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Required, get_args, get_origin

from typing_extensions import get_type_hints, is_typeddict

Json = dict[str, Any]
LISTS = (list, Iterable)
SCALARS: dict[Any, tuple[Any, ...]] = {str: ("x",), int: (1,), float: (0.5,), bool: (True, False), object: ("x",)}
DEEPEST = 6


def requests(kind: Any, path: str = "", within: tuple[Any, ...] = ()) -> Iterator[tuple[str, Json]]:
    """(path, body) for each field of a TypedDict and each of its values that differ in kind.

    A path names the fields, the kind of object where there are several, and the value if it is one of a few:
    `tools<function>.strict=True`.
    """
    least = minimal(kind)
    for name, wanted in get_type_hints(kind).items():
        for told, value in values(wanted, f"{path}.{name}".lstrip("."), (*within, kind)):
            yield told, {**least, name: value}


def values(wanted: Any, path: str, within: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """What a field may be, and for objects each of their fields in turn."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if is_typeddict(wanted):
        if wanted not in within and len(within) < DEEPEST:
            yield from requests(wanted, path + kind_of(wanted), within)
    elif origin is Literal:
        yield from ((f"{path}={value}", value) for value in inner)
    elif origin in LISTS:
        yield from ((told, [value]) for told, value in values(inner[0], path, within))
    elif origin is dict or origin is Mapping:
        yield path, {"x": minimal(inner[1])}
    elif wanted in SCALARS:
        several = len(SCALARS[wanted]) > 1
        yield from ((f"{path}={value}" if several else path, value) for value in SCALARS[wanted])
    else:
        for each in inner:
            yield from values(each, path, within) if each is not type(None) else ()


def minimal(wanted: Any) -> Any:
    """The shortest value of a type: of an object, what must be there."""
    if is_typeddict(wanted):
        hints = get_type_hints(wanted, include_extras=True)
        required: Any = Required
        return {name: minimal(*get_args(kind)) for name, kind in hints.items() if get_origin(kind) is required}
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return inner[0]
    if origin in LISTS:
        return [minimal(inner[0])]
    if origin is dict or origin is Mapping:
        return {"x": minimal(inner[1])}
    if wanted in SCALARS:
        return SCALARS[wanted][0]
    return minimal(inner[0]) if inner else None


def kind_of(wanted: Any) -> str:
    """What tells one object from others in its place."""
    hints = get_type_hints(wanted)
    told = [get_args(hints[name]) for name in ("role", "type", "mode") if get_origin(hints.get(name)) is Literal]
    return "".join(f"<{'|'.join(map(str, each))}>" for each in told)
