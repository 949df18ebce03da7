"""The Dockerfile, as far as it can be held without a Docker engine: its copies, its user, its commands."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*")
JUNK = shutil.ignore_patterns("__pycache__", "*.pyc")


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest), continued lines joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, rest) for name, rest in pairs]


def copies() -> list[tuple[list[str], str]]:
    """(sources, destination) of every COPY from the build context."""
    words = [rest.split() for name, rest in instructions() if name == "COPY" and not rest.startswith("--from=")]
    return [(parts[:-1], parts[-1]) for parts in words]


def runtime_copies() -> list[tuple[str, str]]:
    """(source, destination) of what ends in the image, beside the dependencies."""
    return [(source, target) for sources, target in copies() if "constraints.txt" not in sources for source in sources]


def command(name: str) -> list[str]:
    """The JSON list of the last CMD, or of the HEALTHCHECK."""
    rest = [rest for instruction, rest in instructions() if instruction == name][-1]
    parts: list[str] = json.loads(rest[rest.index("[") :])
    return parts


def is_ignored(path: str) -> bool:
    """Docker's rule: the last pattern that matches the path or a folder above it decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!").strip("/"))
        pattern = pattern.replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{pattern}(?:/.*)?", path):
            ignored = not line.startswith("!")
    return ignored


def test_base_images_are_pinned() -> None:
    arguments = dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG")
    stages: set[str] = set()
    for name, rest in instructions():
        if name == "FROM":
            image, _, stage = rest.partition(" AS ")
            for argument, value in arguments.items():
                image = image.replace(f"${{{argument}}}", value)
            assert image in stages or PINNED.fullmatch(image), image
            stages.add(stage)
    assert stages == {"builder", "app", "runtime"}


def test_every_copied_path_exists_and_reaches_the_build() -> None:
    for sources, _ in copies():
        for source in sources:
            path = ROOT / source
            assert path.exists(), source
            files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
            kept = [p for p in files if "__pycache__" not in p.parts]
            assert kept, source
            for file in kept:
                assert not is_ignored(file.relative_to(ROOT).as_posix()), file


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        ".git/config",
        ".venv/bin/python",
        "runs/a.log",
        "tests/x.py",
        "server/__pycache__/a.pyc",
        "models/other/a",
    ],
)
def test_nothing_else_reaches_the_build(path: str) -> None:
    assert is_ignored(path)


def test_it_does_not_run_as_root() -> None:
    names = [name for name, _ in instructions()]
    user = [rest for name, rest in instructions() if name == "USER"]
    assert len(user) == 1
    assert int(user[0].split(":")[0]) > 0
    assert "RUN" not in names[names.index("USER") :]


def test_it_needs_no_network_to_run() -> None:
    environment = " ".join(rest for name, rest in instructions() if name == "ENV")
    assert "HF_HUB_OFFLINE=1" in environment
    assert "TRANSFORMERS_OFFLINE=1" in environment


def test_the_builder_installs_our_dependencies() -> None:
    build = shlex.split(next(rest for name, rest in instructions() if name == "RUN" and "requirements.txt" in rest))
    code = build[build.index("-c") + 1]
    listed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert listed.splitlines() == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def test_the_command_is_installed_for_packages_that_are_filled_later(tmp_path: Path) -> None:
    build = shlex.split(next(rest for name, rest in instructions() if name == "RUN" and "touch README.md" in rest))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run([sys.executable, "-c", build[build.index("-c") + 1]], cwd=tmp_path, check=True)
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("__init__.py")}
    copied = tuple(f"{source.rstrip('/')}/" for source, _ in runtime_copies())
    ours = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("[!.]*/**/__init__.py")}
    assert {path for path in made if path.startswith(copied)} == {path for path in ours if path.startswith(copied)}


def test_the_image_holds_every_package_of_ours_that_its_code_imports() -> None:
    ours = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()}
    copied = {source.rstrip("/") for source, _ in runtime_copies()}
    for package in ours & copied:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.append(node.module)
                assert {name.split(".")[0] for name in names} & ours <= copied, file


def test_the_health_check_asks_the_port_of_the_server() -> None:
    port = command("CMD")[command("CMD").index("--port") + 1]
    assert ("EXPOSE", port) in instructions()
    assert f"'127.0.0.1', {port}" in command("HEALTHCHECK")[-1]


def test_what_is_copied_serves_and_passes_the_health_check(tmp_path: Path) -> None:
    for source, target in runtime_copies():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / target, ignore=JUNK)
        else:
            shutil.copy(ROOT / source, tmp_path / target)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    serve, check = (
        [sys.executable, *(part.replace("/app/", f"{tmp_path}/").replace("8000", port) for part in command(name)[1:])]
        for name in ("CMD", "HEALTHCHECK")
    )
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(serve, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 180  # kernels are compiled first
        while subprocess.run(check, capture_output=True, check=False).returncode != 0:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
    finally:
        server.terminate()
        server.wait(30)
