"""constraints.txt pins all that an installation brings: what was tested is what is installed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OWN = "cairn-server"
OF_TORCH = re.compile(r"nvidia|triton|cuda|torch")  # torch pins those of its build itself, and builds differ


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    split = [line.partition("==") for line in lines]
    assert all(name and exact for name, _, exact in split), "every line is NAME==VERSION"
    return {canonicalize_name(name): exact for name, _, exact in split}


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(each) for group in (project["dependencies"], *extras) for each in group]


def needed(requirements: list[Requirement], seen: set[str]) -> Iterator[str]:
    """The names of all that the requirements bring, those of their requirements too."""
    for each in requirements:
        name = canonicalize_name(each.name)
        key = f"{name}[{','.join(sorted(each.extras))}]"
        wanted = each.marker is None or each.marker.evaluate({"extra": ""})
        if key in seen or name == OWN or not wanted:
            continue
        seen.add(key)
        yield name
        yield from needed(of(name, each.extras), seen)


def of(name: str, extras: set[str]) -> list[Requirement]:
    try:
        requirements = [Requirement(each) for each in distribution(name).requires or ()]
    except PackageNotFoundError:  # of another platform
        return []
    chosen = [each for each in requirements if each.marker and any(each.marker.evaluate({"extra": e}) for e in extras)]
    plain = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    for each in chosen:
        each.marker = None
    return [*plain, *chosen]


def test_everything_that_is_brought_is_pinned_and_is_what_is_installed() -> None:
    pinned = pins()
    names = {name for name in needed(declared(), set()) if not OF_TORCH.match(name)} - {"pip"}
    assert len(names) > 60
    assert not names - pinned.keys(), "`make constraints` pins them"
    different = {name: (version(name), pinned[name]) for name in names if version(name) != pinned[name]}
    assert not different, "installed, pinned"


def test_what_is_declared_allows_what_is_pinned() -> None:
    pinned = pins()
    for each in declared():
        if canonicalize_name(each.name) != OWN:
            assert each.specifier.contains(pinned[canonicalize_name(each.name)]), each
