"""What the client offers: the same in both forms, all of it named, nothing of the server in it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import cairn_client
import pytest
from cairn_client import AsyncCairn, AsyncStream, Cairn, CairnError, Stream
from cairn_client.aio.sessions import AsyncSessions
from cairn_client.sync.sessions import Sessions

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "clients" / "python"


def surface(kind: type[Any]) -> dict[str, str]:
    """Public methods and what they take, in the words of the synchronous client."""
    found = inspect.getmembers(kind, lambda member: inspect.isfunction(member) or isinstance(member, property))
    public = {name: member for name, member in found if not name.startswith("_")}
    told = {name: str(inspect.signature(m)) if inspect.isfunction(m) else "property" for name, m in public.items()}
    return {name: text.replace("Async", "") for name, text in told.items()}


@pytest.mark.parametrize(("one", "other"), [(Cairn, AsyncCairn), (Sessions, AsyncSessions), (Stream, AsyncStream)])
def test_both_clients_offer_the_same(one: type[Any], other: type[Any]) -> None:
    assert surface(one) == surface(other)


def test_all_that_is_offered_is_there() -> None:
    assert sorted(cairn_client.__all__) == cairn_client.__all__
    assert all(hasattr(cairn_client, name) for name in cairn_client.__all__)


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    from cairn_client import errors

    drawn = [line for line in (errors.__doc__ or "").splitlines() if "──" in line]
    parents = [CairnError.__name__]
    for line in drawn:
        depth = line.index("──") // 4 + 1
        name = line.split("── ")[1].split()[0]
        kind = getattr(errors, name)
        assert kind.__base__.__name__ == parents[depth - 1]
        assert kind.__doc__
        parents[depth:] = [name]
    assert len(drawn) == len([k for k in vars(errors).values() if inspect.isclass(k) and issubclass(k, CairnError)]) - 1


def test_it_installs_by_itself(tmp_path: Path) -> None:
    """Without the network: built with what is here, into a folder that Python is given and nothing else."""
    import shutil

    shutil.copytree(PACKAGE, tmp_path / "source", ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__"))
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "to")]
    subprocess.run([sys.executable, "-m", *install, str(tmp_path / "source")], check=True, capture_output=True)
    assert (tmp_path / "to" / "cairn_client" / "py.typed").is_file()
    code = (
        "import cairn_client, sys; from importlib.metadata import version, requires;"
        "assert cairn_client.__file__.startswith(sys.path[1]);"
        "print(version('cairn-client') == cairn_client.__version__, requires('cairn-client'))"
    )
    path = {"PYTHONPATH": str(tmp_path / "to")}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=path, capture_output=True, text=True)
    assert run.stdout.split() == ["True", "['httpx<1,>=0.27']"], run.stderr
