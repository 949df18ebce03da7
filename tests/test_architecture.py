"""The rules of the house that a test can hold: who imports whom, what stays plain, what importing does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"cache", "engine", "server", "clients", "training", "bench", "cairn_client"}
PLACES = {"cairn_client": ROOT / "clients" / "python" / "src" / "cairn_client"}
"""A distribution of its own, for other people's programs: it lies below `clients` and follows rules of its own."""
STANDARD = set(sys.stdlib_module_names)
ALLOWED: dict[str, set[str]] = {  # beside the standard library and the folder itself
    "cache": {"torch", "numpy", "numba", "llvmlite"},
    "engine": {"torch", "numpy", "cache", "transformers", "safetensors", "llvmlite", "numba", "triton"},
    "server": {
        "engine", "torch", "transformers", "tokenizers", "jinja2", "fastapi", "starlette", "pydantic", "uvicorn", "h11",
        "prometheus_client", "pypdf", "llguidance",
    },
    "cairn_client": {"httpx"},
    "clients": {"cairn_client", "httpx", "rich", "prompt_toolkit", "argcomplete", "platformdirs"},
    "training": {"torch", "numpy", "transformers", "tokenizers", "safetensors", "peft", "tqdm", "engine"},
    "bench": {
        "torch", "numpy", "transformers", "tokenizers", "safetensors", "httpx", "matplotlib", "cache", "engine",
        "training", "llama_cpp", "gguf", "llvmlite", "numba",
    },
}  # fmt: skip
ON_DEMAND = {"llvmlite", "numba", "triton"}
"""Compilers: a machine may lack them, and importing them takes seconds."""
INTERNALS = {
    ("bench", "engine"): {
        "engine.audit",
        "engine.huggingface",
        "engine.layers",
        "engine.many_rows",
        "engine.placing",
        "engine.rounded",
        "engine.step",
        "engine.attention",
    },
}
"""What a bench takes from below the package root: it measures parts that nobody else may touch."""
ELSEWHERE = ROOT / "bench" / "llama_runner.py"
"""A program for another environment, which has llama.cpp and nothing of ours."""
VAGUE = {"utils", "util", "common", "helpers", "helper", "core", "manager", "managers", "misc"}


@dataclass(frozen=True)
class Import:
    """One imported module, and where."""

    file: Path
    line: int
    module: str
    at_top: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def sources(folder: str) -> list[Path]:
    others = [place for name, place in PLACES.items() if name != folder]
    found = sorted(PLACES.get(folder, ROOT / folder).rglob("*.py"))
    return [file for file in found if not any(file.is_relative_to(place) for place in others)]


def imports(file: Path) -> Iterator[Import]:
    """All imports of a file; those for type checkers alone count as well."""
    tree = ast.parse(file.read_text())
    inside = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(file, node.lineno, name.name, node not in inside)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively"
            yield Import(file, node.lineno, node.module or "", node not in inside)


def imports_of(folder: str) -> list[Import]:
    return [found for file in sources(folder) for found in imports(file)]


def none(wrong: list[Import]) -> None:
    assert not wrong, "\n".join(map(str, wrong))


# -- who imports whom ----------------------------------------------------------------------------------------


def test_every_folder_has_a_rule() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/*.py")}
    assert folders >= OURS - set(PLACES)
    assert set(ALLOWED) == OURS
    assert folders - OURS <= {"tests", "docs"}, "a new folder needs a rule here"


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_what_it_may(folder: str) -> None:
    allowed = STANDARD | ALLOWED[folder] | {folder}
    none([found for found in imports_of(folder) if found.top not in allowed])


def test_only_the_program_for_it_imports_what_another_environment_has() -> None:
    everywhere = [found for folder in OURS for found in imports_of(folder)]
    none([found for found in everywhere if found.top in {"llama_cpp", "gguf"} and found.file != ELSEWHERE])
    none([found for found in imports(ELSEWHERE) if found.top not in STANDARD | {"llama_cpp", "gguf", "numpy"}])


@pytest.mark.parametrize("folder", ["cache", "engine", "training", "bench", "clients", "cairn_client"])
def test_no_web_framework_below_the_server(folder: str) -> None:
    """A GPU box may lack them."""
    none([found for found in imports_of(folder) if found.top in {"pydantic", "fastapi", "starlette", "uvicorn"}])


@pytest.mark.parametrize("folder", sorted(OURS))
def test_across_folders_only_the_package_root_is_imported(folder: str) -> None:
    """Tests are exempt, they look inside; of the others only a bench may, at what is named above."""
    wrong = []
    for found in imports_of(folder):
        crosses = found.top in OURS - {folder} and "." in found.module
        if crosses and found.module not in INTERNALS.get((folder, found.top), set()):
            wrong.append(found)
    none(wrong)


def test_compilers_are_imported_on_demand() -> None:
    """Or by a module of kernels, which is imported on demand itself (`test_importing_a_package_loads_no_compiler`)."""
    everywhere = [found for folder in ("cache", "engine", "bench") for found in imports_of(folder)]
    eager = [found for found in everywhere if found.top in ON_DEMAND and found.at_top]
    none([found for found in eager if not found.file.stem.endswith("kernels")])


@pytest.mark.parametrize("folder", sorted(OURS))
def test_an_import_names_what_a_package_root_offers(folder: str) -> None:
    """`from cache import X` is meant by the package: X stands in its `__all__`."""
    for file in sources(folder):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in {"cache", "engine", "training", "cairn_client"} - {
                folder
            }:
                offered = exported(node.module)
                missing = {name.name for name in node.names} - offered
                assert not missing, f"{file.relative_to(ROOT)}:{node.lineno} takes {missing} from {node.module}"


def exported(package: str) -> set[str]:
    for node in ast.parse((PLACES.get(package, ROOT / package) / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


# -- plain parts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["scheduler", "pacing", "sequence", "step", "requests", "tally", "admission", "errors", "stats", "constraint"],
)
def test_bookkeeping_is_plain_python(name: str) -> None:
    none(
        [found for found in imports(ROOT / "engine" / f"{name}.py") if found.top in {"torch", "numpy", "transformers"}]
    )


def test_no_module_has_a_vague_name() -> None:
    names = [
        part for folder in OURS for file in sources(folder) for part in file.relative_to(ROOT).with_suffix("").parts
    ]
    assert not VAGUE & set(names)


@pytest.mark.parametrize("folder", ["cache", "engine", "server", "training", "bench"])
def test_only_the_settings_read_the_environment(folder: str) -> None:
    """The demo hands its own environment on to the server that it starts; how torch waits is told by nothing else."""
    for file in sources(folder):
        if file in (ROOT / "server" / "settings.py", ROOT / "cache" / "__init__.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            assert not (
                isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv", "getenvb"}
            ), f"{file.relative_to(ROOT)}:{node.lineno} reads the environment"
            assert not (isinstance(node, ast.ImportFrom) and node.module == "os"), (
                f"{file.relative_to(ROOT)}:{node.lineno}: import os as a whole, so that its use can be seen"
            )


def test_no_file_is_too_long() -> None:
    lengths = {file: len(file.read_text().splitlines()) for folder in OURS for file in sources(folder)}
    assert not {str(file.relative_to(ROOT)): length for file, length in lengths.items() if length > 400}


def test_every_module_says_what_it_is() -> None:
    for folder in OURS:
        for file in sources(folder):
            text = file.read_text()
            assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{file.relative_to(ROOT)} has no docstring"


# -- importing does nothing ----------------------------------------------------------------------------------

PROBE = """
import os, sys, threading
import torch, transformers
read = []
class Environment(dict):
    def __getitem__(self, name): read.append(name); return super().__getitem__(name)
    def get(self, name, default=None): read.append(name); return super().get(name, default)
before = (set(transformers.AttentionInterface()), torch.get_num_threads(), torch.get_default_dtype(),
          torch.random.get_rng_state().sum().item(), threading.active_count())
environ, os.environ = os.environ, Environment(os.environ)
{imports}
os.environ = environ
after = (set(transformers.AttentionInterface()), torch.get_num_threads(), torch.get_default_dtype(),
         torch.random.get_rng_state().sum().item(), threading.active_count())
assert before == after, (before, after)
assert not [name for name in read if name.startswith("CAIRN")], read
assert not torch.cuda.is_initialized()
loaded = {{name for name in {forbidden} if name in sys.modules}}
assert not loaded, loaded
"""


def modules(folder: str) -> list[str]:
    """All modules of a folder but those that run when they are imported."""
    above = PLACES.get(folder, ROOT / folder).parent
    names = [".".join(file.relative_to(above).with_suffix("").parts) for file in sources(folder)]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize(("folder", "forbidden"), [
    ("cache", {"transformers.models.llama", "triton", "pydantic", "fastapi"}),
    ("engine", {"fastapi", "uvicorn"}),
    ("server", set[str]()),
    ("training", {"fastapi", "uvicorn", "peft", "numba", "triton"}),
])  # fmt: skip
def test_importing_does_nothing(folder: str, forbidden: set[str]) -> None:
    """No attention registered, no threads, devices, random numbers or environment touched, nothing big loaded."""
    lines = "\n".join(f"import {name}" for name in modules(folder))
    code = PROBE.format(imports=lines, forbidden=sorted(forbidden))
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("folder", ["cache", "engine"])
def test_importing_a_package_loads_no_compiler(folder: str) -> None:
    """A process that asks for a model's description need not wait for one."""
    code = f"import sys, {folder}; assert not {{'numba', 'triton'}} & set(sys.modules), 'loaded'"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_importing_the_server_does_not_wait_for_transformers() -> None:
    """It takes longer than all the rest; only the loading of a model needs it, while the server answers already."""
    code = "import sys, server.serving; assert not {'transformers', 'numba'} & set(sys.modules), 'loaded'"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_the_clients_import_without_anything_of_ours_or_torch() -> None:
    lines = "; ".join(f"import {name}" for name in modules("clients"))
    heavy = sorted(OURS - {"clients", "cairn_client"} | {"torch", "transformers", "pydantic"})
    code = f"import sys; {lines}; loaded = set({heavy}) & set(sys.modules); assert not loaded, loaded"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
