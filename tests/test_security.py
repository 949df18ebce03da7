"""docs/security.md promises tests: each is there. And what a look at the sources can show is shown here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = [file for folder in ("cache", "engine", "server", "clients") for file in (ROOT / folder).rglob("*.py")]
RUNS = {"pickle", "cPickle", "dill", "shelve", "marshal", "cloudpickle", "joblib"}
CALLS = {"eval", "exec", "compile", "torch.load", "os.system", "os.popen", "yaml.load"}


def names_of_tests() -> set[str]:
    trees = (ast.parse(file.read_text()) for file in (ROOT / "tests").rglob("test_*.py"))
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_threat_model_names_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 50
    assert not named - names_of_tests()


def test_every_threat_names_a_test() -> None:
    threats = (ROOT / "docs" / "security.md").read_text().partition("## Threats")[2].partition("## For operators")[0]
    rows = [line for line in threats.splitlines() if line.startswith("| ") and not line.startswith("| threat")]
    assert len(rows) > 20
    assert not [row for row in rows if "`test_" not in row.split(" | ")[-1]]


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(file: Path) -> None:
    """No pickle and no evaluation, no shell, and no code from a model's folder."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {name.name for name in node.names} | {getattr(node, "module", None) or ""}
            assert not {name.split(".")[0] for name in names} & RUNS
        elif isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in CALLS
            for keyword in node.keywords:
                assert (keyword.arg, ast.unparse(keyword.value)) != ("shell", "True")
                assert keyword.arg != "trust_remote_code" or ast.unparse(keyword.value) == "False"
