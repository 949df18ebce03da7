"""Which source files decide what a kernel compiles to, so that what was compiled from others is not taken for it.

Numba keeps machine code by the file that a function is in, and does not see when what it calls from another file
changes. These are found by reading: what a file imports from its own packages, and what that imports. Knows nothing of
kernels.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

IMPORTS = re.compile(r"^from ([\w.]+) import (\([^)]*\)|.*)", re.MULTILINE)
KERNELS = re.compile(r"\bkernels\(\"(\w+)\"\)")
"""How modules of kernels are loaded that are needed only sometimes; see `cache.compiling`."""
NAME = re.compile(r"\w+")


@functools.cache
def stamp(path: Path, packages: tuple[str, ...]) -> str:
    """What differs whenever one of the files does that a file of these packages comes from."""
    digest = hashlib.blake2b(digest_size=16)
    for source in sorted(reached(path, packages)):
        digest.update(f"{source.name} ".encode() + hashlib.blake2b(source.read_bytes()).digest())
    return digest.hexdigest()


def reached(path: Path, packages: tuple[str, ...]) -> set[Path]:
    """A file and all that it imports from these packages, directly or not."""
    found, left = {path}, [path]
    while left:
        new = set(imported(left.pop(), packages)) - found
        found |= new
        left += new
    return found


@functools.cache
def imported(path: Path, packages: tuple[str, ...]) -> tuple[Path, ...]:
    """What a file imports from these packages."""
    text = path.read_text(encoding="utf-8")
    found = {place for module, name in names(text) if module.split(".")[0] in packages for place in of(module, name)}
    if "cache" in packages:
        found |= {place for name in KERNELS.findall(text) if (place := file_of(f"cache.{name}_kernels"))}
    return tuple(found)


def names(text: str) -> Iterator[tuple[str, str]]:
    """Each name that a source imports, with the module that it names."""
    for module, listed in IMPORTS.findall(text):
        for name in NAME.findall(re.sub(r"#.*| as \w+", "", listed)):
            yield module, name


def of(module: str, name: str) -> list[Path]:
    """The file that makes a name: a package hands on what its modules make."""
    place = file_of(module)
    if place is None or place.name != "__init__.py":
        return [place] if place else []
    inside = file_of(f"{module}.{name}")
    if inside is not None:
        return [inside]
    handed_on = {each: source for source, each in names(place.read_text(encoding="utf-8"))}
    return of(handed_on[name], name) if name in handed_on else [place]


@functools.cache
def file_of(module: str) -> Path | None:
    """Of a Python module, if there is such a one."""
    try:
        found = find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(found.origin) if found is not None and found.origin is not None else None
