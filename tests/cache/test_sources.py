"""Machine code of kernels is taken again only while all sources are the same that it comes from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cache.sources import reached

ROOT = Path(__file__).parents[2]
KERNEL = """
from mine.inner import grown
from cache.compiling import compiled, job

@compiled
def outer(x: int) -> int:
    return grown(x) * 2

def work(arguments: int, first: int, last: int) -> None:
    pass
"""
INNER = """
from cache.compiling import compiled

@compiled
def grown(x: int) -> int:
    return x + {added}
"""
PROGRAM = """
from mine.outer import job, outer, work
job(work)
print(outer(10), sum(outer.stats.cache_hits.values()), "from", outer.stats.cache_path)
"""


def run(folder: Path) -> tuple[int, int]:
    """What the kernel gives in a process of its own, and how often its machine code was there."""
    given = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "NUMBA_CACHE_DIR": str(folder / "kept")}
    program = [sys.executable, "-B", "-c", PROGRAM]
    output = subprocess.run(program, env=given, capture_output=True, text=True, check=True, cwd=folder).stdout
    result, hits = output.split()[:2]
    return int(result), int(hits)


def test_what_a_kernel_calls_in_another_file_compiles_it_anew(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "outer.py").write_text(KERNEL)
    (mine / "inner.py").write_text(INNER.format(added=1))
    assert run(tmp_path) == (22, 0)
    assert run(tmp_path) == (22, 1)
    (mine / "inner.py").write_text(INNER.format(added=5))
    assert run(tmp_path) == (30, 0)


def test_sources_are_what_a_file_imports_directly_or_not() -> None:
    found = {path.name for path in reached(ROOT / "cache/recall_kernels.py", ("cache",))}
    assert {"recall_kernels.py", "walk_kernels.py", "four_bit_kernels.py", "lane_kernels.py", "four_bits.py"} <= found
    assert not {"session.py", "store.py", "copy_kernels.py"} & found


def test_a_name_that_a_package_hands_on_leads_to_its_module() -> None:
    found = {path.name for path in reached(ROOT / "engine/attention/attend_kernels.py", ("cache", "engine"))}
    assert {"sharing.py", "sharing_kernels.py", "lane_kernels.py", "linear_kernels.py"} <= found
    assert not {"session.py", "fused.py"} & found
